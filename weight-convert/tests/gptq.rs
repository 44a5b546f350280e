//! GPTQ checkpoints arrive without loss, and what had to be rounded is said.

mod common;

use std::fs;

use common::{format, open, read};
use model_format::TensorCache;
use weight_convert::{Error, WeightOptions, convert_weight, verify};

fn convert_and_verify(case: &str) -> (weight_convert::WeightsReport, weight_convert::Verification) {
    let checkpoint = open(case);
    let out = tempfile::tempdir().unwrap();
    let report =
        convert_weight(&checkpoint, format("q4f16_1"), &WeightOptions::default(), out.path(), &mut ()).unwrap();
    let verification = verify(&checkpoint, out.path(), &mut ()).unwrap();
    (report, verification)
}

#[test]
fn every_matrix_of_a_layer_keeps_its_values() {
    for case in ["gptq/llama-sym-g128-v1", "gptq/llama-sym-g32-v1"] {
        let (report, verification) = convert_and_verify(case);
        // Two layers of four matrices, the parts of qkv and gate_up joined.
        assert_eq!(report.lossless.len(), 8, "{case}");
        assert_eq!(report.rounded, ["model.embed_tokens.weight"], "{case}");
        assert!(report.unused.is_empty(), "{case}: {:?}", report.unused);
        assert_eq!(verification.failures().count(), 0, "{case}");
        for check in verification.params.iter().filter(|check| check.lossless) {
            assert!(check.different == 0 && check.max_error == 0.0, "{case}: {check:?}");
        }
    }
}

/// The weights of a GPTQ checkpoint are counted one by one, so the bits per weight are those of the float model.
#[test]
fn packed_weights_are_counted_one_by_one() {
    let (report, _) = convert_and_verify("gptq/llama-sym-g128-v1");
    assert!((report.bits_per_param - 4.520382842963488).abs() < 1e-12, "{}", report.bits_per_param);
}

#[test]
fn verify_finds_what_was_changed() {
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
    let error = verify(&checkpoint, out.path(), &mut ()).unwrap_err();
    assert!(matches!(error, Error::Format(model_format::Error::Checksum { .. })), "{error}");
    // ... and where the index has none, by its values.
    let without_sums = index.lines().filter(|line| !line.contains("md5sum")).collect::<Vec<_>>().join("\n");
    // The field before the sum ends in a comma that JSON does not want there.
    let without_sums = without_sums.replace("            ],\n        }", "            ]\n        }");
    fs::write(out.path().join("tensor-cache.json"), without_sums).unwrap();
    let verification = verify(&checkpoint, out.path(), &mut ()).unwrap();
    let failures: Vec<&str> = verification.failures().map(|check| check.name.as_str()).collect();
    assert_eq!(failures, ["model.layers.1.mlp.down_proj.weight"]);
}
