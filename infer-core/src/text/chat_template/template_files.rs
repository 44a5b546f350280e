//! Finds the chat template among a model's files.

use model_format::ChatConfig;
use model_format::conv_template::ConvTemplate;
use serde_json::Value;

use crate::{
    Result,
    text::files::{content, damaged, object},
};

/// The Jinja template, and the name of its file. `None` if the model has none.
pub fn jinja_text(files: &[(String, Vec<u8>)]) -> Result<Option<(&'static str, String)>> {
    const FILE: &str = "chat_template.jinja";
    if let Some(content) = content(files, FILE) {
        let text = String::from_utf8(content.to_vec()).map_err(|error| damaged(FILE, format!("not UTF-8: {error}")))?;
        return Ok(Some((FILE, text)));
    }
    for name in ["chat_template.json", "tokenizer_config.json"] {
        match object(files, name)?.get("chat_template") {
            None | Some(Value::Null) => {}
            Some(Value::String(text)) => return Ok(Some((name, text.clone()))),
            Some(Value::Array(list)) => return Ok(Some((name, named_template(name, list)?))),
            Some(_) => return Err(damaged(name, "`chat_template` is neither a text nor a list of texts")),
        }
    }
    Ok(None)
}

/// The template named `default` in a list of `{"name": .., "template": ..}`, else the first one.
fn named_template(file: &str, list: &[Value]) -> Result<String> {
    let default = list.iter().find(|entry| entry.get("name").and_then(Value::as_str) == Some("default"));
    let text = default.or(list.first()).and_then(|entry| entry.get("template")).and_then(Value::as_str);
    text.map(str::to_string).ok_or_else(|| damaged(file, "its list of chat templates has no `default`"))
}

/// The conversation template in mlc-chat-config.json. `None` if the model has none.
pub fn conv_template(files: &[(String, Vec<u8>)]) -> Result<Option<ConvTemplate>> {
    let Some(content) = content(files, ChatConfig::FILE_NAME) else { return Ok(None) };
    let text =
        std::str::from_utf8(content).map_err(|error| damaged(ChatConfig::FILE_NAME, format!("not UTF-8: {error}")))?;
    Ok(ConvTemplate::from_chat_config(&ChatConfig::parse(text)?)?)
}
