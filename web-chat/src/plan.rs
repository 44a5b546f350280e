//! [`plan`]: a model's files and memory, from its configuration and its index; an error if this engine cannot run it.
//! [`Checksum`]: the checksum of a downloaded shard.

use infer_core::Engine;
use model_format::{
    ChatConfig, DecoderConfig, QuantFormat, Role, TensorCache, params,
    tensor_cache::{Shard, ShardSum},
};
use serde_json::json;
use wasm_bindgen::prelude::wasm_bindgen;

use crate::error::{JsResult, js_error};

/// Plan of a model from the texts of `mlc-chat-config.json` and of the index, as JSON: the shards with sizes in bytes and
/// checksums, the names of the small files (some are optional), and the required device memory.
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
    // Decode reads one row of the embedding table, unless the table is also the head.
    let read = params(&config).into_iter().filter(|param| config.tie_word_embeddings || param.role != Role::Embedding);
    let stored = read.flat_map(|param| format.stored(&param));
    let bytes_per_token: u64 = stored.map(|stored| stored.disk_bytes() as u64).sum();
    // Keys and values, f16: 2 * 2 bytes.
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

/// The checksum of a shard, computed as in the index.
#[wasm_bindgen]
#[derive(Default)]
pub struct Checksum {
    sum: ShardSum,
}

#[wasm_bindgen]
impl Checksum {
    /// The checksum of zero bytes.
    #[wasm_bindgen(constructor)]
    pub fn new() -> Checksum {
        Checksum::default()
    }

    /// Adds the next bytes of the file.
    pub fn update(&mut self, bytes: &[u8]) {
        self.sum.update(bytes);
    }

    /// The checksum of all bytes, in hexadecimal.
    pub fn finish(self) -> String {
        self.sum.finish()
    }
}
