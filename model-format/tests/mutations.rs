//! Corrupted files of all kinds that this crate reads must not make a reader panic or allocate much memory.

#[path = "common/mutation.rs"]
mod mutation;

mod common;

use std::fs;

use common::{read, testdata};
use model_format::{
    ChatConfig, ConvTemplate, DecoderConfig, Dtype, HostTensor, TensorCache,
    checkpoint::{indexed_files, tensor_ranges, write_safetensors},
    conv_template::{check_fits, infer, names},
    gptq::GptqConfig,
    params,
};

#[global_allocator]
static COUNTING: mutation::Counting = mutation::Counting;

/// The contents of files in the test data.
fn good(paths: &[&str]) -> Vec<Vec<u8>> {
    paths.iter().map(|path| read(path).into_bytes()).collect()
}

/// The file of this name for each architecture.
fn configurations(file: &str) -> Vec<Vec<u8>> {
    ["llama", "mistral", "qwen2", "qwen3", "phi3", "phi3-longrope", "gemma2", "gemma3"]
        .map(|arch| read(&format!("arch/{arch}/{file}")).into_bytes())
        .into()
}

#[test]
fn safetensors_headers() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let tensors = [("a.weight", Dtype::BF16, 6), ("b", Dtype::F32, 1), ("c.qweight", Dtype::I32, 4)];
    write_safetensors(
        &path,
        tensors.map(|(name, dtype, n)| {
            let bytes = vec![1; n * dtype.size()].into();
            (name.to_owned(), HostTensor { dtype, shape: vec![n], bytes })
        }),
    )
    .unwrap();
    let real = fs::read(testdata("gptq/llama-sym-g32-v1/model.safetensors")).unwrap();
    let header = 8 + usize::try_from(u64::from_le_bytes(real[..8].try_into().unwrap())).unwrap();
    mutation::check(&[fs::read(&path).unwrap(), real[..header].to_vec()], |bytes| {
        if let Ok(ranges) = tensor_ranges("model.safetensors", bytes) {
            assert!(ranges.iter().all(|(_, range)| bytes.get(range.clone()).is_some()));
        }
    });
}

#[test]
fn safetensors_indices() {
    let short = br#"{"metadata": {"total_size": 8}, "weight_map": {"a.weight": "m-1.safetensors", "b.weight": "m-2.safetensors"}}"#;
    let real = read("mlc/untied-f16-sharded/hf/model.safetensors.index.json").into_bytes();
    mutation::check(&[short.to_vec(), real], |bytes| {
        let text = String::from_utf8_lossy(bytes);
        if let Ok(files) = indexed_files("model.safetensors.index.json", &text) {
            assert!(files.iter().all(|(file, names)| !file.contains(['/', '\\']) && !names.is_empty()));
        }
    });
}

#[test]
fn tensor_caches() {
    // Also a short index, in which random changes are more likely to hit significant bytes.
    let real: serde_json::Value = serde_json::from_str(&read("arch/llama/q4f16_1/tensor-cache.json")).unwrap();
    let mut short = real.clone();
    short["records"][0]["records"].as_array_mut().unwrap().truncate(4);
    mutation::check(&[real.to_string().into_bytes(), short.to_string().into_bytes()], |bytes| {
        if let Ok(cache) = TensorCache::parse("tensor-cache.json", &String::from_utf8_lossy(bytes)) {
            for shard in &cache.shards {
                assert!(shard.records.iter().all(|record| record.byte_offset + record.nbytes <= shard.nbytes));
            }
        }
    });
}

#[test]
fn configurations_of_checkpoints() {
    let mut good_ones = configurations("hf/config.json");
    good_ones.extend(good(&[
        "gptq/llama-sym-g128-v1/config.json",
        "mlc/gen_config/rope_parameters_transformers5/input.config.json",
    ]));
    mutation::check(&good_ones, |bytes| {
        let json = String::from_utf8_lossy(bytes);
        if let Ok(config) = DecoderConfig::from_hf(&json) {
            assert!(params(&config).iter().all(|param| param.shape.iter().all(|&extent| extent > 0)));
        }
        let _ = GptqConfig::from_config(&json);
    });
}

#[test]
fn configurations_of_mlc_folders() {
    mutation::check(&configurations("q4f16_1/mlc-chat-config.json"), |bytes| {
        if let Ok(config) = ChatConfig::parse(&String::from_utf8_lossy(bytes)) {
            let _ = DecoderConfig::from_mlc(&config);
            let _ = ConvTemplate::from_chat_config(&config);
        }
    });
}

#[test]
fn tokenizers_for_template_inference() {
    let chatml = ConvTemplate::by_name(names().next().unwrap()).unwrap();
    let tokenizer = br#"{"added_tokens": [{"id": 1, "content": "<|im_start|>"}, {"id": 2, "content": "<|im_end|>", "special": true}]}"#;
    let config = br#"{"added_tokens_decoder": {"2": {"content": "<|im_end|>"}}, "chat_template": [{"name": "default", "template": "<|im_start|>"}]}"#;
    mutation::check(&[tokenizer.to_vec(), config.to_vec()], |bytes| {
        for name in ["tokenizer.json", "tokenizer_config.json"] {
            let files = [(name.to_owned(), bytes.to_vec())];
            let _ = infer(&files);
            let _ = check_fits(chatml, &files);
        }
    });
}
