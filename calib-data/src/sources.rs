//! Text from files: plain text, or jsonl with a text or a conversation per line.

use std::path::Path;

use serde_json::Value;

use crate::{Error, Result};

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatMessage {
    /// `system`, `user`, `assistant` ...
    pub role: String,
    /// What was said.
    pub content: String,
}

/// Reads a file: `.jsonl` (or `.ndjson`) with `{"text": ".."}` or `{"messages": [{"role": "..", "content": ".."}]}` per
/// line, anything else as one plain text. One string per text that stands for itself, none of them empty.
///
/// `render_chat` turns a conversation into text by the model's chat template.
pub fn read_documents<E: std::fmt::Display>(
    path: &Path,
    render_chat: impl FnMut(&[ChatMessage]) -> Result<String, E>,
) -> Result<Vec<String>> {
    let bytes = std::fs::read(path).map_err(|source| Error::Read { path: path.into(), source })?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line_start = good.iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1);
        let line = good.iter().filter(|&&b| b == b'\n').count() + 1;
        Error::NotUtf8 { path: path.into(), line, column: good.len() - line_start + 1 }
    })?;
    // Some editors begin a file with a byte order mark, which is no part of its text.
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);

    let is_jsonl =
        path.extension().is_some_and(|e| e.eq_ignore_ascii_case("jsonl") || e.eq_ignore_ascii_case("ndjson"));
    let documents = if is_jsonl { parse_lines(path, text, render_chat)? } else { vec![text.to_owned()] };
    if documents.iter().all(|document| document.trim().is_empty()) {
        return Err(Error::Empty { path: path.into() });
    }
    Ok(documents)
}

/// The documents of a jsonl file; empty lines and empty texts are skipped.
fn parse_lines<E: std::fmt::Display>(
    path: &Path,
    text: &str,
    mut render_chat: impl FnMut(&[ChatMessage]) -> Result<String, E>,
) -> Result<Vec<String>> {
    let mut documents = Vec::new();
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let bad = |reason: String| Error::BadLine { path: path.into(), line: index + 1, reason };
        let value: Value = serde_json::from_str(line).map_err(|error| bad(error.to_string()))?;
        let document = match (value.get("text"), value.get("messages")) {
            (Some(Value::String(text)), None) => text.clone(),
            (None, Some(Value::Array(messages))) => {
                let messages = messages.iter().map(message).collect::<Option<Vec<_>>>();
                let messages = messages.filter(|messages| !messages.is_empty());
                let messages =
                    messages.ok_or_else(|| bad("`messages` is not a list of `role` and `content`".into()))?;
                render_chat(&messages).map_err(|error| bad(error.to_string()))?
            }
            (Some(_), None) => return Err(bad("`text` is not a string".into())),
            (None, Some(_)) => return Err(bad("`messages` is not a list".into())),
            (Some(_), Some(_)) => return Err(bad("it has `text` and `messages`".into())),
            (None, None) => return Err(bad("it has neither `text` nor `messages`".into())),
        };
        if !document.is_empty() {
            documents.push(document);
        }
    }
    Ok(documents)
}

fn message(value: &Value) -> Option<ChatMessage> {
    let field = |name: &str| value.get(name)?.as_str().map(str::to_owned);
    Some(ChatMessage { role: field("role")?, content: field("content")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a file of this name and content is read as: documents, or message and hint.
    fn read(name: &str, content: impl AsRef<[u8]>) -> Result<Vec<String>, (String, String)> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        let render = |messages: &[ChatMessage]| match messages[0].role.as_str() {
            "system" => Err("no system message here"),
            _ => Ok(messages.iter().map(|m| format!("[{}]{}", m.role, m.content)).collect()),
        };
        read_documents(&path, render).map_err(|error| {
            let message = error.to_string().replace(&path.display().to_string(), "FILE");
            (message, error.hint().unwrap_or_default())
        })
    }

    #[test]
    fn plain_text_is_one_document() {
        assert_eq!(read("a.txt", "one\n\ntwo {\"text\"}\n"), Ok(vec!["one\n\ntwo {\"text\"}\n".into()]));
        assert_eq!(read("a", "\u{feff}one"), Ok(vec!["one".into()]));
    }

    #[test]
    fn jsonl_has_texts_and_conversations() {
        let lines = concat!(
            "{\"text\": \"one\\ntwo\"}\n\n",
            "{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}, {\"role\": \"assistant\", \"content\": \"yes\"}]}\r\n",
            "{\"text\": \"\"}\n{\"id\": 7, \"text\": \"three\"}",
        );
        let expected = vec!["one\ntwo".into(), "[user]hi[assistant]yes".into(), "three".into()];
        assert_eq!(read("a.jsonl", lines), Ok(expected));
    }

    #[test]
    fn errors_say_where() {
        let good = "{\"text\": \"x\"}\n";
        let cases: &[(&str, Vec<u8>, &str)] = &[
            ("a.txt", b"".into(), "`FILE` holds no text"),
            ("a.txt", b" \n\t\n".into(), "`FILE` holds no text"),
            ("a.jsonl", b"\n\n".into(), "`FILE` holds no text"),
            ("a.txt", b"ab\nc\xe9d".into(), "`FILE` is not UTF-8: line 2, byte 2"),
            ("a.jsonl", [good, "{\"text\": "].concat().into(), "line 2 of `FILE`: EOF while parsing"),
            ("a.jsonl", [good, "\n[1]"].concat().into(), "line 3 of `FILE`: it has neither `text` nor `messages`"),
            ("a.jsonl", b"{\"text\": 1}".into(), "line 1 of `FILE`: `text` is not a string"),
            ("a.jsonl", b"{\"messages\": []}".into(), "line 1 of `FILE`: `messages` is not a list of `role`"),
            ("a.jsonl", b"{\"messages\": [{\"role\": \"user\"}]}".into(), "line 1 of `FILE`: `messages` is not a list"),
            ("a.jsonl", b"{\"messages\": 3}".into(), "line 1 of `FILE`: `messages` is not a list"),
            (
                "a.jsonl",
                b"{\"text\": \"x\", \"messages\": []}".into(),
                "line 1 of `FILE`: it has `text` and `messages`",
            ),
            (
                "a.jsonl",
                b"{\"messages\": [{\"role\": \"system\", \"content\": \"x\"}]}".into(),
                "line 1 of `FILE`: no system message here",
            ),
        ];
        for (name, content, expected) in cases {
            let (message, hint) = read(name, content).unwrap_err();
            assert!(message.starts_with(expected), "{message}");
            assert!(!hint.is_empty(), "{message}");
        }
        let missing = read_documents(Path::new("not/there.txt"), |_| Ok::<_, String>(String::new())).unwrap_err();
        assert!(missing.to_string().starts_with("cannot read `not/there.txt`: "), "{missing}");
        assert!(missing.hint().unwrap().contains("check the path"));
    }
}
