//! mlc-chat-config.json, read and written.

use serde_json::{Map, Value};

use crate::Result;

/// mlc-chat-config.json.
#[derive(Debug, Clone, PartialEq)]
pub struct ChatConfig {
    /// `model_type` as in config.json.
    pub model_type: String,
    /// Name of the quantization format.
    pub quantization: String,
    /// The architecture's own fields, in MLC's order.
    pub model_config: Map<String, Value>,
    /// Longest context the engine should use.
    pub context_window_size: usize,
    /// Files of the tokenizer that lie beside this one.
    pub tokenizer_files: Vec<String>,
    /// Ids that end an answer.
    pub eos_token_id: Vec<u32>,
    /// The whole file, for what is not listed above.
    pub value: Value,
}

impl ChatConfig {
    /// Reads the text of an mlc-chat-config.json.
    pub fn parse(json: &str) -> Result<ChatConfig> {
        let _ = json;
        todo!()
    }
}
