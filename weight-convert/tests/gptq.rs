//! GPTQ checkpoints convert without loss, and the report names all rounded parameters.

mod common;

use std::fs;

use common::{format, names, open, read, testdata};
use model_format::{
    Checkpoint, Dtype, HostTensor, SafetensorsCheckpoint, TensorCache,
    checkpoint::write_safetensors,
    gptq::{GptqConfig, GptqMatrix},
};
use weight_convert::{Error, WeightOptions, convert_weight, verify};

fn convert_and_verify(case: &str) -> (weight_convert::WeightsReport, weight_convert::Verification) {
    let checkpoint = open(case);
    let out = tempfile::tempdir().unwrap();
    let report =
        convert_weight(&checkpoint, format("q4f16_1"), &WeightOptions::default(), out.path(), &mut ()).unwrap();
    let verification = verify(&checkpoint, out.path(), None, &mut ()).unwrap();
    (report, verification)
}

#[test]
fn every_matrix_of_a_layer_keeps_its_values() {
    for case in ["gptq/llama-sym-g128-v1", "gptq/llama-sym-g32-v1"] {
        let (report, verification) = convert_and_verify(case);
        // Two layers of four matrices; qkv and gate_up are joined.
        assert_eq!(report.lossless.len(), 8, "{case}");
        assert_eq!(report.rounded, ["model.embed_tokens.weight"], "{case}");
        assert!(report.unused.is_empty(), "{case}: {:?}", report.unused);
        assert_eq!(verification.failures().count(), 0, "{case}");
        for check in verification.params.iter().filter(|check| check.lossless) {
            assert!(check.different == 0 && check.max_error == 0.0, "{case}: {check:?}");
        }
    }
}

/// Output of the real AutoGPTQ. Its zero biases and its copy of the tied head are not used.
#[test]
fn a_checkpoint_of_autogptq_keeps_its_values() {
    let (report, verification) = convert_and_verify("autogptq/static-actorder-sym-g32");
    assert_eq!(report.lossless.len(), 8, "{report:?}");
    assert_eq!(verification.failures().count(), 0);
    assert_eq!(verification.params.iter().filter(|check| check.lossless && check.max_error == 0.0).count(), 8);
    let error = convert_weight(
        &open("autogptq/actorder-sym-g64"),
        format("q4f16_1"),
        &WeightOptions::default(),
        tempfile::tempdir().unwrap().path(),
        &mut (),
    );
    assert!(error.unwrap_err().to_string().contains("act-order"));
}

/// Biases stay in floating point, and both versions of a checkpoint give the same bytes.
#[test]
fn another_architecture_and_both_versions() {
    let bytes = ["gptq/qwen2-sym-g32-v1", "gptq/qwen2-sym-g32-v2", "gptq/qwen2-sym-g64-v1"].map(|case| {
        let out = tempfile::tempdir().unwrap();
        let report =
            convert_weight(&open(case), format("q4f16_1"), &WeightOptions::default(), out.path(), &mut ()).unwrap();
        assert_eq!(report.lossless.len(), 12, "{case}");
        assert_eq!(report.rounded, ["model.embed_tokens.weight"], "{case}");
        assert_eq!(verify(&open(case), out.path(), None, &mut ()).unwrap().failures().count(), 0, "{case}");
        read(out.path().join("params_shard_0.bin"))
    });
    assert!(bytes[0] == bytes[1]);
}

/// A checkpoint in several files has the same codes as in one file.
#[test]
fn sharded_checkpoints_are_read() {
    let whole = open("gptq/llama-sym-g32-v1");
    let folder = tempfile::tempdir().unwrap();
    let mut map = serde_json::Map::new();
    let mut parts: [Vec<_>; 3] = Default::default();
    for (i, info) in whole.tensors().iter().enumerate() {
        // Puts the tensors of one module into different files.
        map.insert(info.name.clone(), format!("model-{}.safetensors", i % 3).into());
        parts[i % 3].push((info.name.clone(), whole.tensor(&info.name).unwrap()));
    }
    for (i, part) in parts.into_iter().enumerate() {
        write_safetensors(&folder.path().join(format!("model-{i}.safetensors")), part).unwrap();
    }
    let index = serde_json::json!({ "weight_map": map }).to_string();
    fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
    fs::write(folder.path().join("config.json"), whole.config_json()).unwrap();
    let sharded = SafetensorsCheckpoint::open(folder.path()).unwrap();
    let out = tempfile::tempdir().unwrap();
    let report = convert_weight(&sharded, format("q4f16_1"), &WeightOptions::default(), out.path(), &mut ()).unwrap();
    assert_eq!(report.lossless.len(), 8);
    assert_eq!(verify(&whole, out.path(), None, &mut ()).unwrap().failures().count(), 0);
}

/// For the recorded bytes, mlc_llm converted the dequantized weights as a float checkpoint in f16. Our dequantization must give the
/// same weights.
#[test]
fn dequantized_weights_convert_to_the_recorded_bytes() {
    let gptq = open("mlc/gptq-g128/hf");
    let config = GptqConfig::from_config(gptq.config_json()).unwrap().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut tensors = Vec::new();
    let mut seen = std::collections::BTreeSet::new();
    for info in gptq.tensors() {
        let module = info.name.rsplit_once('.').unwrap().0;
        let Some(matrix) = GptqMatrix::read(&gptq, &config, module).unwrap() else {
            tensors.push((info.name.clone(), gptq.tensor(&info.name).unwrap()));
            continue;
        };
        if seen.insert(module.to_owned()) {
            let bytes: Vec<u8> =
                matrix.dequantize().iter().flat_map(|&v| half::f16::from_f32(v).to_le_bytes()).collect();
            let shape = vec![matrix.rows, matrix.cols];
            tensors.push((format!("{module}.weight"), HostTensor { dtype: Dtype::F16, shape, bytes: bytes.into() }));
        }
    }
    write_safetensors(&folder.path().join("model.safetensors"), tensors).unwrap();
    let mut plain: serde_json::Value = serde_json::from_str(gptq.config_json()).unwrap();
    plain.as_object_mut().unwrap().remove("quantization_config");
    fs::write(folder.path().join("config.json"), plain.to_string()).unwrap();
    let out = tempfile::tempdir().unwrap();
    let float = SafetensorsCheckpoint::open(folder.path()).unwrap();
    convert_weight(&float, format("q4f16_1"), &WeightOptions::default(), out.path(), &mut ()).unwrap();
    let found = String::from_utf8(read(out.path().join("tensor-cache.json"))).unwrap();
    let expected = testdata("mlc/gptq-g128/double_quant_q4f16_1/tensor-cache.json");
    assert_eq!(found, String::from_utf8(read(expected)).unwrap());

    // Converted as a GPTQ checkpoint, it loses nothing.
    let out = tempfile::tempdir().unwrap();
    let report = convert_weight(&gptq, format("q4f16_1"), &WeightOptions::default(), out.path(), &mut ()).unwrap();
    assert_eq!((report.lossless.len(), report.refitted.len()), (8, 0));
}

#[test]
fn unrepresentable_matrices_are_refused_or_refitted() {
    for (case, reason, matrices) in [
        ("gptq/llama-asym-g32-v1", "has zero", 14),
        ("gptq/llama-actorder-sym-g32-v1", "act-order", 14),
        ("gptq/qwen2-actorder-asym-g64-v2", "act-order", 21),
    ] {
        let out = tempfile::tempdir().unwrap();
        let error = convert_weight(&open(case), format("q4f16_1"), &WeightOptions::default(), out.path(), &mut ());
        let error = error.unwrap_err();
        assert!(error.to_string().contains(reason), "{case}: {error}");
        assert!(error.hint().unwrap().contains("--refit"), "{case}");
        assert_eq!(names(out.path()), Vec::<String>::new());

        let options = WeightOptions { refit: true, ..WeightOptions::default() };
        let report = convert_weight(&open(case), format("q4f16_1"), &options, out.path(), &mut ()).unwrap();
        assert_eq!((report.lossless.len(), report.refitted.len()), (0, matrices), "{case}");
        assert!(report.refitted.iter().any(|refit| refit.reason.contains(reason)), "{case}");
        for refit in &report.refitted {
            assert!(refit.relative_error > 0.0 && refit.relative_error < 0.1 && refit.max_error > 0.0, "{refit:?}");
        }
        // Refitted matrices need not equal the checkpoint.
        let verification = verify(&open(case), out.path(), None, &mut ()).unwrap();
        assert_eq!(verification.failures().count(), 0, "{case}");
        assert!(verification.params.iter().all(|check| !check.lossless), "{case}");
    }
}

/// Each packed code counts as one weight, so the bits per weight equal those of the float model.
#[test]
fn each_packed_code_counts_as_a_weight() {
    let (report, _) = convert_and_verify("gptq/llama-sym-g128-v1");
    assert!((report.bits_per_param - 4.520382842963488).abs() < 1e-12, "{}", report.bits_per_param);
}

#[test]
fn verify_finds_a_changed_code() {
    let checkpoint = open("gptq/llama-sym-g32-v1");
    let out = tempfile::tempdir().unwrap();
    convert_weight(&checkpoint, format("q4f16_1"), &WeightOptions::default(), out.path(), &mut ()).unwrap();
    let index = String::from_utf8(read(out.path().join("tensor-cache.json"))).unwrap();
    let cache = TensorCache::parse("tensor-cache.json", &index).unwrap();
    let (shard, record) = cache.find("model.layers.1.mlp.down_proj.q_weight").unwrap();
    let path = out.path().join(&shard.data_path);
    let mut bytes = read(&path);
    bytes[record.byte_offset] ^= 1;
    fs::write(&path, &bytes).unwrap();

    // First by its checksum, ...
    let error = verify(&checkpoint, out.path(), None, &mut ()).unwrap_err();
    assert!(matches!(error, Error::Format(model_format::Error::Checksum { .. })), "{error}");
    // ... then, without checksums in the index, by its values.
    let without_sums = index.lines().filter(|line| !line.contains("md5sum")).collect::<Vec<_>>().join("\n");
    // JSON allows no comma after the last field, so remove the one before the sum.
    let without_sums = without_sums.replace("            ],\n        }", "            ]\n        }");
    fs::write(out.path().join("tensor-cache.json"), without_sums).unwrap();
    let verification = verify(&checkpoint, out.path(), None, &mut ()).unwrap();
    let failures: Vec<&str> = verification.failures().map(|check| check.name.as_str()).collect();
    assert_eq!(failures, ["model.layers.1.mlp.down_proj.weight"]);
}
