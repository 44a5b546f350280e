//! A tiny model with a tokenizer and a chat template, for tests of whole answers.

use std::path::Path;

use infer_core::{CacheFolder, Device, Engine, LoadOptions, SamplingParams, block_on};
use model_format::DirFiles;
use serde_json::Value;
use tempfile::TempDir;

use super::common::Golden;

/// An MLC folder with a tokenizer.
pub fn model() -> TempDir {
    let (folder, golden) = (tempfile::tempdir().unwrap(), Golden::open("arch/llama").folder("q4f16_1"));
    for entry in std::fs::read_dir(golden).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    let tokenizer = Golden::open("tokenizer/tiny-bpe").folder("tokenizer.json");
    std::fs::copy(tokenizer, folder.path().join("tokenizer.json")).unwrap();
    // The template is made for a larger vocabulary. Remove the token that this one lacks.
    let path = folder.path().join("mlc-chat-config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config["conv_template"]["system_prefix_token_ids"] = Value::Null;
    config["conv_template"]["system_message"] = "".into();
    std::fs::write(&path, config.to_string()).unwrap();
    folder
}

pub fn options(folder: &Path, context: usize) -> LoadOptions {
    LoadOptions {
        context: Some(context),
        device_cache: Some(CacheFolder::at(folder.join("cache"))),
        ..Default::default()
    }
}

pub fn engine(folder: &Path, device: Device, context: usize) -> Engine {
    let options = options(folder, context);
    block_on(Engine::load_mlc(&DirFiles::new(folder), device, &options, &mut ())).unwrap()
}

pub fn greedy(max_tokens: usize) -> SamplingParams {
    SamplingParams { max_tokens: Some(max_tokens), ..SamplingParams::greedy() }
}
