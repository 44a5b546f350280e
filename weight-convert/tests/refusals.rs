//! Errors name the fault, and leave no folder that looks complete.

mod common;

use std::{fs, path::Path};

use common::{format, names, open, read, tiny_llama};
use half::bf16;
use model_format::{
    Checkpoint, Error as FormatError, HostTensor, SafetensorsCheckpoint, checkpoint::write_safetensors,
};
use weight_convert::{
    ConfigOptions, ConfigSource, ConvertOptions, Error, Progress, WeightOptions, convert, convert_weight, gen_config,
    inspect,
};

/// A copy of the tiny Llama with changed tensors.
fn with_tensors(change: impl Fn(&mut Vec<(String, HostTensor<'static>)>)) -> tempfile::TempDir {
    let folder = tiny_llama();
    let checkpoint = SafetensorsCheckpoint::open(folder.path()).unwrap();
    let mut tensors: Vec<(String, HostTensor<'static>)> = checkpoint
        .tensors()
        .iter()
        .map(|info| {
            let tensor = checkpoint.tensor(&info.name).unwrap();
            let bytes = tensor.bytes.into_owned().into();
            (info.name.clone(), HostTensor { dtype: tensor.dtype, shape: tensor.shape, bytes })
        })
        .collect();
    change(&mut tensors);
    write_safetensors(&folder.path().join("model.safetensors"), tensors).unwrap();
    folder
}

fn set(tensors: &mut [(String, HostTensor<'static>)], name: &str, index: usize, value: f32) {
    let (_, tensor) = tensors.iter_mut().find(|(n, _)| n == name).unwrap();
    tensor.bytes.to_mut()[index * 2..][..2].copy_from_slice(&bf16::from_f32(value).to_le_bytes());
}

fn check(folder: &Path, messages: &[&str]) {
    let checkpoint = SafetensorsCheckpoint::open(folder).unwrap();
    let parent = tempfile::tempdir().unwrap();
    let out = parent.path().join("deep/out");
    let config = ConfigOptions { conv_template: Some("chatml".into()), ..ConfigOptions::default() };
    let options = ConvertOptions { config, ..ConvertOptions::default() };
    let error = convert(&checkpoint, format("q4f16_1"), &options, &out, &mut ()).unwrap_err();
    for message in messages {
        assert!(error.to_string().contains(message), "{error}");
    }
    assert!(error.hint().is_some(), "{error}");
    assert_eq!(names(parent.path()), Vec::<String>::new(), "nothing is left, not even the folder");
}

const DOWN: &str = "model.layers.1.mlp.down_proj.weight";
const NORM: &str = "model.layers.0.input_layernorm.weight";

#[test]
fn nan_and_infinite_weights_are_named() {
    let folder = with_tensors(|tensors| set(tensors, DOWN, 300, f32::NAN));
    check(folder.path(), &[DOWN, "model.safetensors", "NaN at index 300"]);
    let folder = with_tensors(|tensors| set(tensors, NORM, 5, f32::NEG_INFINITY));
    check(folder.path(), &[NORM, "-inf at index 5"]);
    let folder = with_tensors(|tensors| {
        set(tensors, DOWN, 31000, f32::NAN);
        set(tensors, DOWN, 7, f32::INFINITY);
    });
    check(folder.path(), &["inf at index 7"]);
}

#[test]
fn weights_beyond_f16_are_named() {
    let folder = with_tensors(|tensors| set(tensors, DOWN, 12, 1e5));
    check(folder.path(), &[DOWN, "at index 12, which overflows f16"]);
}

#[test]
fn all_errors_in_headers_are_reported_at_once() {
    let folder = with_tensors(|tensors| {
        tensors.retain(|(name, _)| name != NORM);
        for (name, tensor) in tensors {
            if name == DOWN {
                tensor.shape.reverse();
            }
            if name == "model.layers.0.self_attn.k_proj.weight" {
                *name = "model.layers.0.self_attn.key_proj.weight".into();
            }
        }
    });
    check(
        folder.path(),
        &[
            "3 problems",
            "parameter `model.layers.0.input_layernorm.weight` is missing",
            "has shape [256, 128], expected [128, 256]",
            "`model.layers.0.self_attn.k_proj.weight` is missing",
            "(nearest: `model.layers.0.self_attn.key_proj.weight`)",
        ],
    );
}

#[test]
fn an_unexpected_bias_must_be_zero() {
    let bias = |value: f32| {
        with_tensors(move |tensors| {
            let bytes: Vec<u8> = (0..128).flat_map(|_| bf16::from_f32(value).to_le_bytes()).collect();
            let tensor = HostTensor { dtype: model_format::Dtype::BF16, shape: vec![128], bytes: bytes.into() };
            tensors.push(("model.layers.0.self_attn.o_proj.bias".into(), tensor));
        })
    };
    check(bias(0.5).path(), &["`model.layers.0.self_attn.o_proj.bias` in", "is not zero"]);
    let zero = bias(-0.0);
    let out = tempfile::tempdir().unwrap();
    let checkpoint = SafetensorsCheckpoint::open(zero.path()).unwrap();
    let report =
        convert_weight(&checkpoint, format("q4f16_1"), &WeightOptions::default(), out.path(), &mut ()).unwrap();
    assert_eq!(report.unused, ["model.layers.0.self_attn.o_proj.bias"]);
}

#[test]
fn a_template_that_cannot_be_inferred_must_be_named() {
    let folder = tiny_llama();
    let checkpoint = SafetensorsCheckpoint::open(folder.path()).unwrap();
    let out = tempfile::tempdir().unwrap();
    let result = convert(&checkpoint, format("q4f16_1"), &ConvertOptions::default(), out.path(), &mut ());
    let error = result.unwrap_err();
    assert!(error.to_string().contains("cannot tell which conversation template fits"), "{error}");
    assert!(error.hint().unwrap().contains("`--conv-template`"));
    assert_eq!(names(out.path()), Vec::<String>::new());
}

/// Cancels after some tensors.
struct StopAfter(usize);

impl Progress for StopAfter {
    fn advance(&mut self, _bytes: u64, _param: &str) {
        self.0 = self.0.saturating_sub(1);
    }

    fn is_cancelled(&self) -> bool {
        self.0 == 0
    }
}

#[test]
fn cancelling_keeps_the_previous_content() {
    let out = tempfile::tempdir().unwrap();
    let result = convert_weight(
        &open("arch/llama/hf"),
        format("q4f16_1"),
        &WeightOptions::default(),
        out.path(),
        &mut StopAfter(5),
    );
    assert!(matches!(result, Err(Error::Cancelled)));
    assert_eq!(names(out.path()), Vec::<String>::new());

    // An earlier conversion stays unchanged.
    convert_weight(&open("arch/llama/hf"), format("q4f16_1"), &WeightOptions::default(), out.path(), &mut ()).unwrap();
    let before = read(out.path().join("params_shard_0.bin"));
    let result = convert_weight(
        &open("arch/llama/hf"),
        format("q0f16"),
        &WeightOptions::default(),
        out.path(),
        &mut StopAfter(5),
    );
    assert!(result.is_err());
    assert!(read(out.path().join("params_shard_0.bin")) == before);
    inspect(out.path()).unwrap();
}

#[test]
fn a_new_conversion_replaces_all_files_of_the_old_one() {
    let out = tempfile::tempdir().unwrap();
    let write = |options: &WeightOptions| {
        convert_weight(&open("arch/llama/hf"), format("q4f16_1"), options, out.path(), &mut ())
    };
    let small = WeightOptions { shard_size: 24 << 10, ..WeightOptions::default() };
    assert!(write(&small).unwrap().shards > 2);
    fs::write(out.path().join(".weight-convert-x.tmp"), "stale").unwrap();
    write(&WeightOptions::default()).unwrap();
    assert_eq!(names(out.path()), ["ndarray-cache.json", "params_shard_0.bin", "tensor-cache.json"]);
    inspect(out.path()).unwrap();
}

/// Converts into a folder with these files. `Ok`: the files afterwards. `Err`: the refused files, and true if `overwrite` accepts them.
fn check_folder(files: &[&str], overwrite: bool, expected: Result<&[&str], (&[&str], bool)>) {
    let out = tempfile::tempdir().unwrap();
    for name in files {
        fs::write(out.path().join(name), "another's").unwrap();
    }
    let options = WeightOptions { overwrite, ..WeightOptions::default() };
    let result = convert_weight(&open("arch/llama/hf"), format("q4f16_1"), &options, out.path(), &mut ());
    match (result, expected) {
        (Ok(_), Ok(expected)) => assert_eq!(names(out.path()), expected),
        (Err(Error::Format(FormatError::ForeignFiles { names: found, replaceable, .. })), Err(expected)) => {
            assert_eq!((&found.iter().map(String::as_str).collect::<Vec<_>>()[..], replaceable), expected);
            assert_eq!(names(out.path()), files);
            assert!(files.iter().all(|name| read(out.path().join(name)) == b"another's"));
        }
        (result, expected) => panic!("{files:?}: {result:?}, expected {expected:?}"),
    }
}

#[test]
fn foreign_files_are_refused_by_name() {
    let whole: &[&str] = &["ndarray-cache.json", "params_shard_0.bin", "tensor-cache.json"];
    check_folder(&[], false, Ok(whole));
    check_folder(&["README.md"], false, Err((&["README.md"], false)));
    check_folder(&["README.md"], true, Err((&["README.md"], false)));
    // Named like ours, but not listed in an index.
    check_folder(&["params_shard_7.bin"], false, Err((&["params_shard_7.bin"], true)));
    check_folder(&["params_shard_7.bin"], true, Ok(whole));
    check_folder(&["tokenizer.json"], false, Err((&["tokenizer.json"], true)));
    check_folder(&["tensor-cache.json"], false, Err((&["tensor-cache.json"], true)));

    // The two commands of mlc_llm write to one folder in either order. A file added later is foreign.
    let out = tempfile::tempdir().unwrap();
    let llama = tiny_llama();
    let source = ConfigSource::folder(llama.path()).unwrap();
    let options = ConfigOptions { conv_template: Some("llama-3".into()), ..ConfigOptions::default() };
    let config = || gen_config(&source, format("q4f16_1"), &options, out.path()).map(drop);
    let weights = || {
        let options = WeightOptions::default();
        convert_weight(&open("arch/llama/hf"), format("q4f16_1"), &options, out.path(), &mut ()).map(drop)
    };
    config().unwrap();
    weights().unwrap();
    config().unwrap();
    weights().unwrap();
    inspect(out.path()).unwrap();
    fs::write(out.path().join("params_shard_9.bin"), "another's").unwrap();
    for error in [config().unwrap_err(), weights().unwrap_err()] {
        assert!(error.to_string().contains("`params_shard_9.bin`"), "{error}");
        assert!(error.hint().unwrap().contains("--overwrite"));
    }
}

#[test]
fn inspect_names_a_missing_shard() {
    let out = tempfile::tempdir().unwrap();
    assert!(inspect(out.path()).unwrap_err().to_string().contains("`tensor-cache.json` is missing"));
    convert_weight(&open("arch/llama/hf"), format("q4f16_1"), &WeightOptions::default(), out.path(), &mut ()).unwrap();
    let shard = out.path().join("params_shard_0.bin");
    fs::write(&shard, &read(&shard)[1..]).unwrap();
    assert!(inspect(out.path()).unwrap_err().to_string().contains("bytes, expected"));
    fs::remove_file(&shard).unwrap();
    assert!(inspect(out.path()).unwrap_err().to_string().contains("`params_shard_0.bin` is missing"));
}
