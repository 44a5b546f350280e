//! Constructors of [`DecoderConfig`] from config.json and from MLC's `model_config`, by the architecture's record.

use serde_json::Value;

use super::{Architecture, Context};
use crate::{ChatConfig, DecoderConfig, Result, config_json::ConfigJson};

impl DecoderConfig {
    /// Parses the content of a Hugging Face config.json.
    ///
    /// # Errors
    ///
    /// An error for an unsupported architecture, and for a missing or invalid field.
    pub fn from_hf(json: &str) -> Result<DecoderConfig> {
        let config = ConfigJson::parse("config.json", json)?;
        let arch = Architecture::by_model_type(config.str("model_type")?)?;
        (arch.decoder_config)(&config)?.checked(&config)
    }

    /// Reads the `model_config` of an mlc-chat-config.json.
    ///
    /// # Errors
    ///
    /// As [`DecoderConfig::from_hf`].
    pub fn from_mlc(chat_config: &ChatConfig) -> Result<DecoderConfig> {
        let arch = Architecture::by_model_type(&chat_config.model_type)?;
        let mut fields = chat_config.model_config.clone();
        // Flatten the inner configuration and `kwargs`, which has fields unknown to MLC.
        for inner in ["text_config", "kwargs"] {
            if let Some(Value::Object(inner)) = fields.shift_remove(inner) {
                for (name, value) in inner {
                    fields.entry(name).or_insert(value);
                }
            }
        }
        fields.insert("model_type".into(), chat_config.model_type.clone().into());
        // MLC's names for fields of config.json.
        let mut words = vec![("position_embedding_base", "rope_theta"), ("sliding_window_size", "sliding_window")];
        if arch.mlc_config.context == Context::Positions {
            words.push(("context_window_size", "max_position_embeddings"));
        }
        for (mlc, hf) in words {
            // MLC writes -1 for "none".
            if let (Some(v), None) = (fields.get(mlc).filter(|v| v.as_i64() != Some(-1)).cloned(), fields.get(hf)) {
                fields.insert(hf.into(), v);
            }
        }
        let config = ConfigJson { file: ChatConfig::FILE_NAME.into(), value: Value::Object(fields) };
        (arch.decoder_config)(&config)?.checked(&config)
    }

    /// The architecture of this decoder.
    pub fn architecture(&self) -> &'static Architecture {
        Architecture::by_model_type(&self.model_type).expect("a DecoderConfig is only made for a known architecture")
    }
}
