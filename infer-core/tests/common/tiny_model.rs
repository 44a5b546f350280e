//! The engine with a tiny model, for tests of whole answers.

#![allow(dead_code, reason = "each test file uses its part of this one")]

#[path = "chat_model.rs"]
mod chat_model;

use std::path::Path;

use infer_core::{CacheFolder, Device, Engine, LoadOptions, SamplingParams, block_on};
use model_format::DirFiles;

pub use chat_model::model;

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
