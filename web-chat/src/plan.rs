//! [`plan`]: which files a model has, and whether this engine runs it, from its two small files. [`Checksum`]: whether a
//! file arrived as it was sent.

use infer_core::Engine;
use model_format::{
    ChatConfig, DecoderConfig, QuantFormat, Role, TensorCache, params,
    tensor_cache::{Shard, ShardSum},
};
use serde_json::json;
use wasm_bindgen::prelude::wasm_bindgen;

use crate::error::{JsResult, js_error};

/// What `mlc-chat-config.json` and the index say of a model, as JSON: the shards with sizes and checksums, the small files
/// that belong to it where they exist, and what it takes on a device.
#[wasm_bindgen]
pub fn plan(chat_config: &str, index_name: &str, index: &str) -> JsResult<String> {
    read(chat_config, index_name, index).map_err(js_error)
}

fn read(chat_config: &str, index_name: &str, index: &str) -> infer_core::Result<String> {
    let chat_config = ChatConfig::parse(chat_config)?;
    let config = DecoderConfig::from_mlc(&chat_config)?;
    let format = QuantFormat::by_name(&chat_config.quantization)?;
    let cache = TensorCache::parse(index_name, index)?;
    let shard = |shard: &Shard| json!({ "name": shard.data_path, "bytes": shard.nbytes, "md5": shard.md5sum });
    // Of the embedding table one row is read, unless the table is the head too.
    let read = params(&config).into_iter().filter(|param| config.tie_word_embeddings || param.role != Role::Embedding);
    let stored = read.flat_map(|param| format.stored(&param));
    let bytes_per_token: u64 = stored.map(|stored| stored.disk_bytes() as u64).sum();
    // Keys and values of f16.
    let cache_bytes = 4 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim;
    let plan = json!({
        "shards": cache.shards.iter().map(shard).collect::<Vec<_>>(),
        "textFiles": Engine::TEXT_FILES,
        "weightBytes": cache.shards.iter().map(|shard| shard.nbytes).sum::<usize>(),
        "cacheBytesPerToken": cache_bytes,
        "bytesPerToken": bytes_per_token,
        "context": Engine::default_context(&chat_config, &config),
        "modelType": config.model_type,
        "quantization": chat_config.quantization,
    });
    Ok(plan.to_string())
}

/// The checksum that the index records of a shard.
#[wasm_bindgen]
#[derive(Default)]
pub struct Checksum {
    sum: ShardSum,
}

#[wasm_bindgen]
impl Checksum {
    /// Of nothing yet.
    #[wasm_bindgen(constructor)]
    pub fn new() -> Checksum {
        Checksum::default()
    }

    /// Takes in the next bytes of the file.
    pub fn update(&mut self, bytes: &[u8]) {
        self.sum.update(bytes);
    }

    /// Of all bytes, in hexadecimal.
    pub fn finish(self) -> String {
        self.sum.finish()
    }
}
