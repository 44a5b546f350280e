//! [`ChatConfig`]: reads mlc-chat-config.json. weight-convert writes it.

use serde_json::{Map, Value};

use crate::{
    Error, Result,
    config_json::ConfigJson,
    files::{ModelFiles, check_file_name},
};

/// The content of mlc-chat-config.json.
#[derive(Debug, Clone, PartialEq)]
pub struct ChatConfig {
    /// `model_type` as in config.json.
    pub model_type: String,
    /// Name of the quantization format.
    pub quantization: String,
    /// Fields of the architecture, in MLC's order ([`MlcConfig`](crate::arch::MlcConfig)).
    pub model_config: Map<String, Value>,
    /// Longest context in tokens. `None` if unlimited (-1 in the file).
    pub context_window_size: Option<usize>,
    /// Names of the tokenizer's files in the same folder.
    pub tokenizer_files: Vec<String>,
    /// Ids of the tokens that end an answer.
    pub eos_token_id: Vec<u32>,
    /// The whole file, for all other fields.
    pub value: Value,
}

impl ChatConfig {
    /// The file's name.
    pub const FILE_NAME: &'static str = "mlc-chat-config.json";

    /// Reads the file from a model's folder.
    ///
    /// # Errors
    ///
    /// [`Error::MissingFile`], [`Error::Io`], and the errors of [`ChatConfig::parse`].
    pub async fn read(files: &impl ModelFiles) -> Result<ChatConfig> {
        let bytes = files.read(ChatConfig::FILE_NAME).await?;
        let not_utf8 = |_| Error::Malformed { file: ChatConfig::FILE_NAME.into(), reason: "not UTF-8".into() };
        ChatConfig::parse(&String::from_utf8(bytes).map_err(not_utf8)?)
    }

    /// Parses the content of an mlc-chat-config.json.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`] for invalid JSON or a file name with a path, [`Error::MissingField`], [`Error::BadField`].
    pub fn parse(json: &str) -> Result<ChatConfig> {
        let config = ConfigJson::parse(ChatConfig::FILE_NAME, json)?;
        let bad = |field: &str, expected: &str, found: &Value| Error::BadField {
            file: config.file.clone(),
            field: field.into(),
            expected: expected.into(),
            found: found.to_string(),
        };
        let field = |name: &str| config.value.get(name).unwrap_or(&Value::Null);

        let model_config = match field("model_config") {
            Value::Object(fields) => fields.clone(),
            Value::Null => return Err(Error::MissingField { file: config.file.clone(), field: "model_config".into() }),
            other => return Err(bad("model_config", "an object", other)),
        };
        let tokenizer_files = match field("tokenizer_files") {
            Value::Null => Vec::new(),
            Value::Array(names) => names
                .iter()
                .map(|name| {
                    let name = name.as_str().ok_or_else(|| bad("tokenizer_files", "a list of file names", name))?;
                    check_file_name(&config.file, name).map(|()| name.to_owned())
                })
                .collect::<Result<_>>()?,
            other => return Err(bad("tokenizer_files", "a list of file names", other)),
        };
        let id = |value: &Value| {
            value
                .as_u64()
                .and_then(|id| u32::try_from(id).ok())
                .ok_or_else(|| bad("eos_token_id", "a token id or a list of them", value))
        };
        let eos_token_id = match field("eos_token_id") {
            Value::Null => Vec::new(),
            Value::Array(ids) => ids.iter().map(id).collect::<Result<_>>()?,
            one => vec![id(one)?],
        };
        Ok(ChatConfig {
            model_type: config.str("model_type")?.into(),
            quantization: config.str("quantization")?.into(),
            model_config,
            context_window_size: match field("context_window_size").as_i64() {
                Some(-1) => None,
                _ => Some(config.usize("context_window_size")?),
            },
            tokenizer_files,
            eos_token_id,
            value: config.value,
        })
    }
}
