//! GGUF files from llama.cpp's own Python package, compared with the tensors and tokenizers that this package and
//! transformers read from them (`testdata/gguf/make.py`). Also damaged files.

use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::{Value as GgufValue, write};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use model_format::checkpoint::read_param;
use model_format::{Checkpoint, DecoderConfig, Dtype, SafetensorsCheckpoint, params};
use model_hub::{Error, GgufCheckpoint, HubConfig, Model, open, save_checkpoint};
use serde_json::{Value, json};

fn testdata(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata").join(name)
}

fn tiny() -> GgufCheckpoint {
    GgufCheckpoint::open(&testdata("gguf/tiny.gguf")).unwrap()
}

fn read_json(path: PathBuf) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// A companion file of a checkpoint, as JSON.
fn companion(checkpoint: &dyn Checkpoint, name: &str) -> Value {
    let files = checkpoint.companion_files().unwrap();
    let (_, content) = files.iter().find(|(file, _)| file == name).unwrap();
    serde_json::from_slice(content).unwrap()
}

/// Converts merges given as pairs to the equivalent form `left right`.
fn with_merges_joined(mut tokenizer: Value) -> Value {
    for merge in tokenizer["model"]["merges"].as_array_mut().unwrap() {
        if let Some(pair) = merge.as_array() {
            *merge = json!(format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()));
        }
    }
    tokenizer
}

#[test]
fn tensors_equal_those_of_llama_cpp() {
    // Add a configuration to the recorded tensors, to open them as a checkpoint.
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(testdata("gguf/tiny.safetensors"), folder.path().join("model.safetensors")).unwrap();
    std::fs::write(folder.path().join("config.json"), "{}").unwrap();
    let expected = SafetensorsCheckpoint::open(folder.path()).unwrap();
    let found = tiny();

    let mut names: Vec<_> = expected.tensors().iter().map(|info| info.name.clone()).collect();
    names.sort();
    assert_eq!(found.tensors().iter().map(|info| info.name.clone()).collect::<Vec<_>>(), names);
    for info in found.tensors() {
        let (expected, found) = (expected.tensor(&info.name).unwrap(), found.tensor(&info.name).unwrap());
        assert_eq!((found.dtype, &found.shape), (expected.dtype, &expected.shape), "{}", info.name);
        assert_eq!((info.dtype, &info.shape), (found.dtype, &found.shape));
        // Compare as f32, where 0 equals -0: the sums of K-quants give either.
        assert!(found.to_f32() == expected.to_f32(), "{} differs", info.name);
    }
    let float = found.tensors().iter().filter(|info| info.dtype == Dtype::F32).count();
    assert_eq!(float, 2, "one matrix and one norm that is not exact in f16");
}

#[test]
fn the_configuration_is_rebuilt() {
    let checkpoint = tiny();
    let expected = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "bos_token_id": 0, "eos_token_id": [1, 2],
        "head_dim": 16, "hidden_act": "silu", "hidden_size": 64, "intermediate_size": 256,
        "max_position_embeddings": 131072, "num_attention_heads": 4, "num_hidden_layers": 2, "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "rope_scaling": {
            "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3",
        },
        "rope_theta": 500000.0, "tie_word_embeddings": false, "torch_dtype": "float16", "vocab_size": 512,
    });
    assert_eq!(serde_json::from_str::<Value>(checkpoint.config_json()).unwrap(), expected);
    assert_eq!(companion(&checkpoint, "generation_config.json"), json!({ "bos_token_id": 0, "eos_token_id": [1, 2] }));
    // All parameters of the decoder are readable.
    let config = DecoderConfig::from_hf(checkpoint.config_json()).unwrap();
    for param in params(&config) {
        assert_eq!(read_param(&checkpoint, &param).unwrap().len(), param.shape.iter().product::<usize>());
    }
}

#[test]
fn a_byte_level_tokenizer_is_rebuilt() {
    let checkpoint = tiny();
    let expected = with_merges_joined(read_json(testdata("tokenizer/tiny-bpe/tokenizer.json")));
    assert_eq!(companion(&checkpoint, "tokenizer.json"), expected);
    let config = companion(&checkpoint, "tokenizer_config.json");
    assert_eq!(config["chat_template"], "{% for m in messages %}{{ m.content }}<|eot|>{% endfor %}");
    assert_eq!((&config["bos_token"], &config["eos_token"]), (&json!("<|bos|>"), &json!("<|end|>")));
    assert_eq!(config["added_tokens_decoder"]["2"]["content"], "<|eot|>");
    assert_eq!(companion(&checkpoint, "special_tokens_map.json")["eos_token"], "<|end|>");
}

#[test]
fn a_sentencepiece_tokenizer_is_rebuilt() {
    let checkpoint = GgufCheckpoint::open(&testdata("gguf/sentencepiece.gguf")).unwrap();
    let expected = with_merges_joined(read_json(testdata("gguf/sentencepiece.tokenizer.json")));
    let found = companion(&checkpoint, "tokenizer.json");
    for part in expected.as_object().unwrap().keys().filter(|part| *part != "model") {
        assert_eq!(found[part], expected[part], "{part}");
    }
    assert_eq!(found, expected);
}

#[test]
fn a_saved_checkpoint_equals_its_source() {
    let (checkpoint, folder) = (tiny(), tempfile::tempdir().unwrap());
    let folder = folder.path().join("new/folder");
    save_checkpoint(&checkpoint, &folder).unwrap();
    let error = save_checkpoint(&checkpoint, &folder).unwrap_err();
    assert!(error.to_string().contains("`config.json`") && error.hint().is_some(), "{error}");
    let mut names: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    let files = [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    assert_eq!(names, files);
    let hub = HubConfig::new(folder.join("unused"));
    let Model::Checkpoint(saved) = open(folder.to_str().unwrap(), &hub, &mut ()).unwrap() else {
        panic!("not a folder")
    };
    assert_eq!(saved.config_json(), checkpoint.config_json());
    assert_eq!(saved.tensors().len(), checkpoint.tensors().len());
    for info in checkpoint.tensors() {
        let (a, b) = (saved.tensor(&info.name).unwrap(), checkpoint.tensor(&info.name).unwrap());
        assert!((a.dtype, a.shape, a.bytes) == (b.dtype, b.shape, b.bytes), "{}", info.name);
    }
    assert!(checkpoint.tensor("model.norm.wait").unwrap_err().hint().unwrap().contains("model.norm.weight"));
}

/// Opens a small valid file with changed metadata. `None` removes an entry. The embedding table has `rows` rows.
fn changed(changes: &[(&str, Option<GgufValue>)], rows: usize) -> Result<GgufCheckpoint, Error> {
    use GgufValue::{Array, F32, String as Text, U32};
    let list = |words: &[&str]| Array(words.iter().map(|word| Text(word.to_string())).collect());
    let mut entries = vec![
        ("general.architecture", Text("llama".into())),
        ("llama.context_length", U32(64)),
        ("llama.embedding_length", U32(32)),
        ("llama.block_count", U32(1)),
        ("llama.feed_forward_length", U32(32)),
        ("llama.attention.head_count", U32(2)),
        ("llama.attention.layer_norm_rms_epsilon", F32(1e-5)),
        ("tokenizer.ggml.model", Text("gpt2".into())),
        ("tokenizer.ggml.pre", Text("smollm".into())),
        ("tokenizer.ggml.tokens", list(&["a", "b", "ab", "<e>"])),
        ("tokenizer.ggml.merges", list(&["a b"])),
        ("tokenizer.ggml.eos_token_id", U32(3)),
    ];
    for (key, value) in changes {
        entries.retain(|(other, _)| other != key);
        entries.extend(value.clone().map(|value| (*key, value)));
    }
    let tensor = Tensor::zeros((rows, 32), candle_core::DType::F32, &Device::Cpu).unwrap();
    let tensor = QTensor::quantize(&tensor, GgmlDType::Q8_0).unwrap();
    let entries: Vec<_> = entries.iter().map(|(key, value)| (*key, value)).collect();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("changed.gguf");
    write(&mut std::fs::File::create(&path).unwrap(), &entries, &[("token_embd.weight", &tensor)]).unwrap();
    GgufCheckpoint::open(&path)
}

#[test]
fn the_smollm_pre_tokenizer_equals_transformers() {
    let found = companion(&changed(&[], 4).unwrap(), "tokenizer.json");
    let expected = read_json(testdata("tokenizer/smollm2/tokenizer.json"));
    for part in ["normalizer", "pre_tokenizer", "post_processor", "decoder"] {
        assert_eq!(found[part], expected[part], "{part}");
    }
    // More rows than tokens: some models pad their tables.
    assert!(changed(&[], 8).is_ok());
}

#[test]
fn unsupported_and_invalid_metadata_is_named() {
    use GgufValue::{Array, Bool, F32, String as Text, U32};
    let text = |text: &str| Some(Text(text.into()));
    let list = |words: &[&str]| Some(Array(words.iter().map(|word| Text(word.to_string())).collect()));
    let cases = [
        ("general.architecture", text("mamba"), "its architecture is `mamba`"),
        ("general.architecture", None, "`general.architecture` is missing"),
        ("general.architecture", Some(U32(1)), "`general.architecture` is not a string"),
        ("llama.block_count", None, "`llama.block_count` is missing"),
        ("llama.block_count", Some(F32(1.0)), "`llama.block_count` is not a non-negative integer"),
        ("llama.block_count", Some(U32(0)), "num_hidden_layers"),
        ("llama.block_count", Some(U32(u32::MAX)), "num_hidden_layers"),
        ("llama.attention.head_count", Some(U32(0)), "no attention heads"),
        ("llama.attention.head_count_kv", Some(Array(vec![U32(1), U32(2)])), "its layers have different values"),
        ("llama.attention.head_count_kv", Some(U32(3)), "num_key_value_heads"),
        ("llama.attention.layer_norm_rms_epsilon", Some(F32(f32::NAN)), "rms_norm_eps"),
        ("llama.expert_count", Some(U32(8)), "mixture of experts"),
        ("llama.rope.dimension_count", Some(U32(8)), "16 dimensions in keys, 16 in values and 8 in RoPE"),
        ("llama.rope.scaling.type", text("yarn"), "its RoPE scaling is `yarn`"),
        ("tokenizer.ggml.model", text("bert"), "its tokenizer is `bert`"),
        ("tokenizer.ggml.pre", text("unheard-of"), "pre-tokenizer `unheard-of`"),
        ("tokenizer.ggml.pre", None, "pre-tokenizer `default`"),
        ("tokenizer.ggml.tokens", None, "`tokenizer.ggml.tokens` is missing"),
        ("tokenizer.ggml.tokens", list(&["a", "b", "ab", "c", "d"]), "5 tokens, but 4 embeddings"),
        ("tokenizer.ggml.tokens", list(&["a", "b", "ab", "a"]), "tokens 0 and 3 are both \"a\""),
        ("tokenizer.ggml.merges", list(&["a c"]), "the merge \"a c\""),
        ("tokenizer.ggml.merges", list(&["ab"]), "the merge \"ab\""),
        ("tokenizer.ggml.token_type", Some(Array(vec![U32(1)])), "but 1 token types"),
        ("tokenizer.ggml.eos_token_id", Some(U32(4)), "outside the vocabulary of 4"),
        ("tokenizer.ggml.add_bos_token", Some(U32(1)), "not a boolean"),
        ("tokenizer.chat_template", Some(Bool(true)), "not a string"),
    ];
    for (key, value, expected) in cases {
        let error = changed(&[(key, value)], 4).err().unwrap_or_else(|| panic!("{key}: accepted, not {expected}"));
        assert!(error.to_string().contains(expected), "{error}, not {expected}");
        assert!(error.hint().is_some(), "{error}");
    }
    let sentencepiece = [("tokenizer.ggml.model", text("llama")), ("tokenizer.ggml.pre", None)];
    assert!(changed(&sentencepiece, 4).unwrap_err().to_string().contains("but 0 scores"));
}

/// A handmade header: magic, version, counts, then `rest`.
fn header(tensors: u64, entries: u64, rest: &[u8]) -> Vec<u8> {
    [b"GGUF", &3u32.to_le_bytes()[..], &tensors.to_le_bytes(), &entries.to_le_bytes(), rest].concat()
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

/// A metadata entry. `kind` is the number of its type.
fn entry(key: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    [&string(key), &kind.to_le_bytes()[..], value].concat()
}

fn array(kind: u32, length: u64, rest: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &length.to_le_bytes(), rest].concat()
}

fn tensor(name: &str, extents: &[u64], kind: u32, offset: u64) -> Vec<u8> {
    let extents: Vec<u8> = extents.iter().flat_map(|extent| extent.to_le_bytes()).collect();
    let dims = (extents.len() / 8) as u32;
    [&string(name), &dims.to_le_bytes()[..], &extents, &kind.to_le_bytes(), &offset.to_le_bytes()].concat()
}

fn open_bytes(bytes: &[u8]) -> Result<GgufCheckpoint, Error> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    GgufCheckpoint::open(file.path())
}

#[test]
fn hostile_headers_are_rejected() {
    let huge = u64::MAX;
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (vec![], "header is cut off"),
        (b"GGML\0\0\0\0".to_vec(), "does not begin with `GGUF`"),
        (b"GGUF\0\0\0\x03".to_vec(), "big-endian"),
        (header(huge, 0, &[]), "exceed the limit of"),
        (header(0, huge, &[]), "exceed the limit of"),
        (header(5, 0, &[]), "header is cut off"),
        (header(0, 1, &huge.to_le_bytes()), "bytes in a name"),
        (header(0, 1, &entry("", 4, &[0; 4])), "a name is empty"),
        (header(0, 1, &entry("k\n", 4, &[0; 4])), "control characters"),
        (header(0, 1, &entry("k", 99, &[0; 4])), "metadata `k`: type 99"),
        (header(0, 1, &entry("k", 8, &huge.to_le_bytes())), "bytes in a string"),
        (header(0, 1, &entry("k", 8, &1_000_000u64.to_le_bytes())), "header is cut off"),
        (header(0, 1, &entry("k", 9, &array(0, huge, &[]))), "elements in an array"),
        (header(0, 1, &entry("k", 9, &array(0, 1 << 22, &[]))), "header is cut off"),
        (header(0, 1, &entry("k", 9, &array(9, 1, &array(9, 1, &array(9, 1, &[]))))), "nested too deeply"),
        (header(0, 2, &[entry("k", 4, &[0; 4]), entry("k", 4, &[0; 4])].concat()), "`k` occurs twice"),
        (header(0, 1, &entry("general.alignment", 4, &[0; 4])), "not a power of two"),
        (header(0, 1, &entry("general.alignment", 4, &48u32.to_le_bytes())), "not a power of two"),
        (header(0, 1, &entry("general.alignment", 0, &[0])), "not a u32"),
        (header(1, 0, &tensor("t", &[], 0, 0)), "0 dimensions"),
        (header(1, 0, &tensor("t", &[1; 5], 0, 0)), "5 dimensions"),
        (header(1, 0, &tensor("t", &[0, 4], 0, 0)), "tensor `t` has an impossible size or offset"),
        (header(1, 0, &tensor("t", &[huge, 4], 0, 0)), "tensor `t` has an impossible size or offset"),
        (header(1, 0, &tensor("t", &[1 << 32, 1 << 32], 0, 0)), "tensor `t` has an impossible size or offset"),
        (header(1, 0, &tensor("t", &[32], 20, 0)), "unsupported type 20"),
        (header(1, 0, &tensor("t", &[33], 8, 0)), "33 elements, not a multiple of 32"),
        (header(1, 0, &tensor("t", &[32], 0, huge)), "tensor `t` has an impossible size or offset"),
        (header(1, 0, &tensor("t", &[32], 0, 0)), "ends at byte"),
        (header(2, 0, &[tensor("t", &[1], 0, 0), tensor("t", &[1], 0, 0)].concat()), "`t` occurs twice"),
        (header(0, 0, &[]), "`general.architecture` is missing"),
    ];
    for (bytes, expected) in cases {
        let error = open_bytes(&bytes).err().unwrap_or_else(|| panic!("accepted, not {expected}"));
        assert!(error.to_string().contains(expected), "{error}, not {expected}");
    }
}

#[test]
fn damaged_files_do_not_panic() {
    let whole = std::fs::read(testdata("gguf/tiny.gguf")).unwrap();
    let tensor_data = whole.len() - 150_000;
    for length in (0..whole.len()).step_by(tensor_data / 150) {
        assert!(open_bytes(&whole[..length]).is_err(), "cut after {length} bytes");
    }
    // Change bytes by a fixed pseudo-random sequence: any result except a panic is correct.
    let mut state = 1u64;
    let mut next = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    for _ in 0..500 {
        let mut bytes = whole.clone();
        for _ in 0..=next(3) {
            let at = if next(2) == 0 { next(2048) } else { next(tensor_data) };
            bytes[at] = [0, 0xff, 0x80, next(256) as u8][next(4)];
        }
        if let Ok(checkpoint) = open_bytes(&bytes) {
            assert!(!checkpoint.tensors().is_empty());
        }
    }
}
