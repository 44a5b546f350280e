//! Reads JSON objects and special tokens from a model's small files, given as names and contents.

use serde_json::{Map, Value};

use crate::{Error, Result};

/// `bos_token`, `eos_token` and other special tokens of the tokenizer's files.
pub(crate) fn special_tokens(files: &[(String, Vec<u8>)]) -> Result<Map<String, Value>> {
    let mut tokens = Map::new();
    for name in ["special_tokens_map.json", "tokenizer_config.json"] {
        for (key, value) in object(files, name)? {
            // A token is its text, or an object with the text in `content`.
            let text = value.as_str().or_else(|| value.get("content")?.as_str());
            if let (true, Some(text)) = (key.ends_with("_token"), text) {
                tokens.insert(key, Value::from(text));
            }
        }
    }
    Ok(tokens)
}

/// The JSON object in a file; empty if the file is missing.
pub(crate) fn object(files: &[(String, Vec<u8>)], name: &str) -> Result<Map<String, Value>> {
    match content(files, name).map(serde_json::from_slice) {
        None => Ok(Map::new()),
        Some(Ok(Value::Object(object))) => Ok(object),
        Some(Ok(_)) => Err(damaged(name, "it is not a JSON object")),
        Some(Err(error)) => Err(damaged(name, error.to_string())),
    }
}

/// The content of a file; `None` if it is missing.
pub(crate) fn content<'a>(files: &'a [(String, Vec<u8>)], name: &str) -> Option<&'a [u8]> {
    files.iter().find(|(file, _)| file == name).map(|(_, content)| content.as_slice())
}

/// The error for a damaged file.
pub(crate) fn damaged(file: &str, reason: impl Into<String>) -> Error {
    model_format::Error::Malformed { file: file.into(), reason: reason.into() }.into()
}
