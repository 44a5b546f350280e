//! Each broken file gives its error. No file makes a reader panic.

mod common;

use std::{fs, path::Path};

use common::{read, testdata};
use model_format::{
    ChatConfig, Checkpoint, DecoderConfig, Dtype, Error, HostTensor, SafetensorsCheckpoint, TensorCache,
    checkpoint::write_safetensors, gptq::GptqConfig,
};

const CONFIG: &str = "{}";

fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in files {
        fs::write(folder.path().join(name), content).unwrap();
    }
    folder
}

/// True if an error contains `reason`, has one line, and has a hint.
fn is_explained(error: &Error, reason: &str) -> bool {
    let text = error.to_string();
    text.contains(reason) && text.lines().count() == 1 && error.hint().is_some()
}

fn open_error(folder: &Path) -> String {
    let error = SafetensorsCheckpoint::open(folder).unwrap_err();
    assert!(is_explained(&error, ""), "{error}");
    error.to_string()
}

#[test]
fn broken_safetensors_are_rejected_with_a_reason() {
    for (case, reason) in [
        ("truncated", "bytes, expected"),
        ("trailing", "bytes, expected"),
        ("empty", "has 0 bytes, expected 8"),
        ("too-short", "has 3 bytes, expected 8"),
        ("header-too-long", "bytes, expected 1008"),
        ("header-huge", "not a safetensors file"),
        ("overlap", "tensor `b` overlaps the previous tensor: it begins at 4, expected 8"),
        ("hole", "tensor `b` leaves a gap before it: it begins at 12, expected 8"),
        ("wrong-size", "tensor `a` has bytes 0..8, but F16 of shape [5] needs 10 bytes"),
        ("backwards", "tensor `a`"),
        ("overflow", "tensor `a` has an impossible shape"),
        ("wraps", "tensor `a` has bytes"),
        ("bad-name", "is not a tensor name"),
        ("empty-name", "is not a tensor name"),
        ("unknown-dtype", "tensor `a`: unknown variant `F17`"),
        ("not-json", "its header is not JSON"),
        ("array-header", "its header is not JSON"),
    ] {
        let content = fs::read(testdata(&format!("hostile/{case}.safetensors"))).unwrap();
        let folder = folder(&[("config.json", CONFIG.as_bytes()), ("model.safetensors", &content)]);
        let error = open_error(folder.path());
        assert!(error.contains("model.safetensors") && error.contains(reason), "{case}: {error}");
    }
}

#[test]
fn broken_indices_are_rejected_with_a_reason() {
    for (case, reason) in [
        ("index-path-escape", "is not a plain file name"),
        ("index-no-map", "has no `weight_map`"),
        ("index-number", "`a` is not mapped to a file name"),
    ] {
        let index = fs::read(testdata(&format!("hostile/{case}.json"))).unwrap();
        let folder = folder(&[("config.json", CONFIG.as_bytes()), ("model.safetensors.index.json", &index)]);
        let error = open_error(folder.path());
        assert!(error.contains(reason), "{case}: {error}");
    }
}

#[test]
fn missing_files_are_errors_with_their_names() {
    let empty = folder(&[]);
    assert!(open_error(empty.path()).contains("`config.json` is missing"));
    let no_weights = folder(&[("config.json", CONFIG.as_bytes())]);
    assert!(open_error(no_weights.path()).contains("`model.safetensors` is missing"));
    let index = br#"{"weight_map": {"a": "model-00001-of-00002.safetensors"}}"#;
    let no_shard = folder(&[("config.json", CONFIG.as_bytes()), ("model.safetensors.index.json", index)]);
    assert!(open_error(no_shard.path()).contains("`model-00001-of-00002.safetensors` is missing"));
}

#[test]
fn a_tensor_of_the_index_must_be_in_its_file() {
    let index = br#"{"weight_map": {"a": "s.safetensors", "b": "s.safetensors"}}"#;
    let folder = folder(&[("config.json", CONFIG.as_bytes()), ("model.safetensors.index.json", index)]);
    let tensor = HostTensor { dtype: Dtype::F32, shape: vec![1], bytes: vec![0; 4].into() };
    write_safetensors(&folder.path().join("s.safetensors"), [("a".to_owned(), tensor)]).unwrap();
    let error = open_error(folder.path());
    assert!(error.contains("parameter `b` is missing in") && error.contains("s.safetensors"), "{error}");
}

#[test]
fn broken_configurations_are_rejected_with_a_reason() {
    for (case, reason) in [
        ("config-no-hidden-size", "`config.json` has no `hidden_size`"),
        ("config-unknown-model-type", "unsupported architecture: `llamma`"),
        ("config-zero-heads", "`num_attention_heads` in `config.json` must be"),
        ("config-kv-heads", "`num_key_value_heads` in `config.json` must be a divisor"),
        ("config-negative", "`hidden_size` in `config.json` must be"),
        ("config-huge", "`vocab_size` in `config.json` must be between"),
        ("config-nan-theta", "`rope_theta` in `config.json` must be a number"),
        ("config-not-json", "`config.json` is malformed"),
        ("config-deep", "`config.json` is malformed: recursion limit exceeded"),
        ("config-bom", "`config.json` is malformed: expected value at line 1 column 1"),
        ("config-layers-4e9", "`num_hidden_layers` in `config.json` must be between 1 and 16777216, found: 4000000000"),
        ("config-eps-text", "`rms_norm_eps` in `config.json` must be a number, found: \"small\""),
        ("config-head-odd", "`head_dim` in `config.json` must be a multiple of 4, at most 512, found: 33"),
        ("config-layer-types-short", "`layer_types` in `config.json` must be a list of one entry per layer"),
        ("config-layer-types-unknown", "`layer_types` in `config.json` must be of `sliding_attention`"),
        ("config-window-zero", "`sliding_window` in `config.json` must be between 1 and 16777216, found: 0"),
        ("config-window-negative", "`sliding_window` in `config.json` must be a non-negative integer, found: -5"),
        ("config-softcap-zero", "`attn_logit_softcapping` in `config.json` must be a positive number, found: 0"),
        ("config-activation", "`hidden_activation` in `config.json` must be `silu` or `gelu_pytorch_tanh`"),
        (
            "config-longrope-short",
            "`short_factor` in `config.json: rope_scaling` must be a list of 16 positive numbers",
        ),
        ("config-longrope-text", "`long_factor` in `config.json: rope_scaling` must be a list of 16 positive numbers"),
        ("config-longrope-no-original", "`config.json` has no `original_max_position_embeddings`"),
        ("config-rope-factor-zero", "`factor` in `config.json: rope_scaling` must be a positive number"),
        ("config-rope-yarn", "`rope_type` in `config.json: rope_scaling` must be `default`, `linear`"),
        ("config-rotary-odd", "`partial_rotary_factor` in `config.json` must be a multiple of 4 within `head_dim`"),
        (
            "config-rotary-too-wide",
            "`partial_rotary_factor` in `config.json` must be a multiple of 4 within `head_dim`",
        ),
    ] {
        let error = DecoderConfig::from_hf(&read(&format!("hostile/{case}.json"))).unwrap_err();
        assert!(is_explained(&error, reason), "{case}: {error}");
    }
    for (case, reason) in [
        ("config-awq", "`quant_method` in `config.json: quantization_config` must be `gptq`, found: awq"),
        ("config-5-bits", "`bits` in"),
        ("config-group-zero", "`group_size` in"),
    ] {
        let error = GptqConfig::from_config(&read(&format!("hostile/{case}.json"))).unwrap_err();
        assert!(is_explained(&error, reason), "{case}: {error}");
    }
    for (case, reason) in [
        ("chat-config-path-escape", "\"../tokenizer.json\" is not a plain file name"),
        ("chat-config-eos", "`eos_token_id` in"),
        ("chat-config-no-model-config", "has no `model_config`"),
    ] {
        let error = ChatConfig::parse(&read(&format!("hostile/{case}.json"))).unwrap_err();
        assert!(is_explained(&error, reason), "{case}: {error}");
    }
}

#[test]
fn broken_tensor_caches_are_rejected_with_a_reason() {
    for (case, reason) in [
        ("path-escape", "is not a plain file name"),
        ("absolute-path", "is not a plain file name"),
        ("overlap", "tensor `b` overlaps the previous tensor in `params_shard_0.bin`"),
        ("beyond-end", "tensor `a` ends after the end of `params_shard_0.bin`"),
        ("offset-wraps", "tensor `a` ends after the end"),
        ("wrong-nbytes", "tensor `a` has 6 bytes, but float16 of shape [4] needs 8"),
        ("shape-wraps", "tensor `a` has 0 bytes"),
        ("dtype", "tensor `a` has the unknown dtype \"float12\""),
        ("twice", "tensor `a` occurs twice"),
        ("md5", "is not an md5 sum"),
        ("no-records", "`records` has no shards"),
        ("negative", "invalid value"),
    ] {
        let error = TensorCache::parse("tensor-cache.json", &read(&format!("hostile/cache-{case}.json"))).unwrap_err();
        assert!(is_explained(&error, reason), "{case}: {error}");
    }
}

#[test]
fn written_safetensors_are_read_back() {
    let folder = folder(&[("config.json", CONFIG.as_bytes())]);
    let tensors: Vec<(String, HostTensor<'_>)> = [
        ("b", Dtype::F16, vec![3, 2], 12),
        ("a", Dtype::F16, vec![1], 2),
        ("w", Dtype::I32, vec![2], 8),
        ("none", Dtype::F32, vec![0, 7], 0),
        ("scalar", Dtype::BF16, vec![], 2),
    ]
    .map(|(name, dtype, shape, n)| {
        (name.to_owned(), HostTensor { dtype, shape, bytes: (1..=n).collect::<Vec<u8>>().into() })
    })
    .into();
    let path = folder.path().join("model.safetensors");
    write_safetensors(&path, tensors.clone()).unwrap();
    let checkpoint = SafetensorsCheckpoint::open(folder.path()).unwrap();
    assert_eq!(checkpoint.tensors().len(), tensors.len());
    for (name, tensor) in tensors {
        let found = checkpoint.tensor(&name).unwrap();
        assert_eq!((found.dtype, &found.shape, &found.bytes), (tensor.dtype, &tensor.shape, &tensor.bytes), "{name}");
    }
    // The order in the file, as by the safetensors library: descending alignment, then name.
    let order: Vec<_> = checkpoint.tensors().iter().map(|info| info.name.as_str()).collect();
    assert_eq!(order, ["none", "w", "scalar", "a", "b"]);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "no temporary file is left");
}
