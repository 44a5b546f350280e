//! [`StopStrings`]: ends an answer at a string, also where the string straddles two pieces of text.
//!
//! The generation checks token ids against [`stop_token_ids`], decodes the rest to text, and passes the text through
//! here before anyone sees it.

use serde_json::Value;

use crate::Tokenizer;

/// Strings that end an answer. They are not part of it.
#[derive(Debug, Clone)]
pub struct StopStrings {
    strings: Vec<String>,
    /// Text that may be the beginning of one of them.
    held: String,
    stopped: bool,
}

/// What [`StopStrings::push`] lets through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passed {
    /// The text that is certainly part of the answer.
    pub text: String,
    /// Whether a stop string was found: the answer ends behind `text`.
    pub stopped: bool,
}

impl StopStrings {
    /// Stops at the first of `strings` to appear; empty ones are ignored.
    pub fn new(strings: impl IntoIterator<Item = String>) -> StopStrings {
        let strings = strings.into_iter().filter(|s| !s.is_empty()).collect();
        StopStrings { strings, held: String::new(), stopped: false }
    }

    /// Takes the next piece of text. What could be the beginning of a stop string is held back until it is decided.
    pub fn push(&mut self, text: &str) -> Passed {
        if self.stopped {
            return Passed { text: String::new(), stopped: true };
        }
        self.held.push_str(text);
        // The first to be complete, as if the text came letter by letter; so the pieces it comes in do not matter.
        let found = |s: &String| self.held.find(s.as_str()).map(|at| (at + s.len(), at));
        if let Some((_, at)) = self.strings.iter().filter_map(found).min() {
            self.held.truncate(at);
            self.stopped = true;
            return Passed { text: std::mem::take(&mut self.held), stopped: true };
        }
        let certain = self.held.len() - self.longest_beginning();
        let rest = self.held.split_off(certain);
        Passed { text: std::mem::replace(&mut self.held, rest), stopped: false }
    }

    /// The answer ended otherwise: returns what was held back.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Bytes at the end of `held` that begin a stop string.
    fn longest_beginning(&self) -> usize {
        let longest = |s: &String| {
            let most = (s.len() - 1).min(self.held.len());
            (1..=most)
                .rev()
                .find(|n| s.as_bytes().starts_with(&self.held.as_bytes()[self.held.len() - n..]))
                .unwrap_or(0)
        };
        self.strings.iter().map(longest).max().unwrap_or(0)
    }
}

/// The ids that end an answer, by the model's own files (names and contents): `mlc-chat-config.json` with its
/// conversation template, `generation_config.json`, `config.json`, and the end token of `tokenizer_config.json`.
pub fn stop_token_ids(files: &[(String, Vec<u8>)], tokenizer: &Tokenizer) -> Vec<u32> {
    let mut ids = Vec::new();
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let mut add = |value: Option<&Value>| match value {
        Some(Value::Array(list)) => ids.extend(list.iter().filter_map(id)),
        Some(value) => ids.extend(id(value)),
        None => {}
    };
    for (name, content) in files {
        let json = || serde_json::from_slice::<Value>(content).ok();
        match name.as_str() {
            "mlc-chat-config.json" => {
                let json = json();
                add(json.as_ref().and_then(|config| config.get("eos_token_id")));
                add(json.as_ref().and_then(|config| config.pointer("/conv_template/stop_token_ids")));
            }
            "generation_config.json" | "config.json" => {
                add(json().as_ref().and_then(|config| config.get("eos_token_id")));
            }
            "tokenizer_config.json" => {
                let json = json();
                let eos = json.as_ref().and_then(|config| config.get("eos_token"));
                let text = eos.and_then(|eos| eos.as_str().or_else(|| eos.get("content")?.as_str()));
                let id = text.and_then(|text| tokenizer.token_id(text));
                add(id.map(Value::from).as_ref());
            }
            _ => {}
        }
    }
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// The strings that end an answer by the conversation template of `mlc-chat-config.json`, if there is one.
pub fn stop_strings(files: &[(String, Vec<u8>)]) -> Vec<String> {
    let config = files.iter().find(|(name, _)| name == "mlc-chat-config.json");
    let json = config.and_then(|(_, content)| serde_json::from_slice::<Value>(content).ok());
    let list = json.as_ref().and_then(|json| json.pointer("/conv_template/stop_str")).and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_str).map(str::to_string).collect()
}
