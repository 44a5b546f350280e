//! Constructors of [`DecoderConfig`]: the architecture's record reads config.json, or MLC's `model_config`.

use serde_json::Value;

use super::{Architecture, Context};
use crate::{ChatConfig, DecoderConfig, Result, config_json::ConfigJson};

impl DecoderConfig {
    /// Reads the text of a Hugging Face config.json.
    pub fn from_hf(json: &str) -> Result<DecoderConfig> {
        let config = ConfigJson::parse("config.json", json)?;
        let arch = Architecture::by_model_type(config.str("model_type")?)?;
        (arch.decoder_config)(&config)?.checked(&config)
    }

    /// Reads the `model_config` of an mlc-chat-config.json.
    pub fn from_mlc(chat_config: &ChatConfig) -> Result<DecoderConfig> {
        let arch = Architecture::by_model_type(&chat_config.model_type)?;
        let mut fields = chat_config.model_config.clone();
        // The fields of an inner configuration, and what MLC could not name.
        for inner in ["text_config", "kwargs"] {
            if let Some(Value::Object(inner)) = fields.shift_remove(inner) {
                for (name, value) in inner {
                    fields.entry(name).or_insert(value);
                }
            }
        }
        fields.insert("model_type".into(), chat_config.model_type.clone().into());
        // MLC's words for the same facts.
        let mut words = vec![("position_embedding_base", "rope_theta"), ("sliding_window_size", "sliding_window")];
        if arch.mlc_config.context == Context::Positions {
            words.push(("context_window_size", "max_position_embeddings"));
        }
        for (mlc, hf) in words {
            // MLC says -1 where there is none.
            if let (Some(v), None) = (fields.get(mlc).filter(|v| v.as_i64() != Some(-1)).cloned(), fields.get(hf)) {
                fields.insert(hf.into(), v);
            }
        }
        let config = ConfigJson { file: ChatConfig::FILE_NAME.into(), value: Value::Object(fields) };
        (arch.decoder_config)(&config)?.checked(&config)
    }

    /// The record of this decoder's family.
    pub fn architecture(&self) -> &'static Architecture {
        Architecture::by_model_type(&self.model_type).expect("a DecoderConfig is only made for a known architecture")
    }
}
