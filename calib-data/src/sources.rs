//! Text from files: plain text, or jsonl with a `text` or a conversation per line.

use std::path::Path;

use crate::Result;

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatMessage {
    /// `system`, `user`, `assistant` ...
    pub role: String,
    /// What was said.
    pub content: String,
}

/// Reads a file: `.jsonl` (or `.ndjson`) with `{"text": ".."}` or `{"messages": [{"role": "..", "content": ".."}]}` per
/// line, anything else as one plain text. One string per text that stands for itself. `render_chat` turns a conversation into text by the model's chat template.
pub fn read_documents<E: std::fmt::Display>(
    path: &Path,
    render_chat: impl FnMut(&[ChatMessage]) -> Result<String, E>,
) -> Result<Vec<String>> {
    let _ = (path, render_chat);
    todo!()
}
