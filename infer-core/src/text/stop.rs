//! [`StopStrings`]: ends an answer at a string, even if the string spans several pieces of text.
//!
//! A generation compares token ids with [`stop_token_ids`], decodes the others, and filters the text through
//! [`StopStrings`] before it returns it.

use serde_json::Value;

use super::tokenizer::Tokenizer;

/// Strings that end an answer. The answer does not include them.
#[derive(Debug, Clone)]
pub struct StopStrings {
    strings: Vec<String>,
    /// Text held back, because it may be the start of a stop string.
    held: String,
    stopped: bool,
}

/// The result of [`StopStrings::push`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passed {
    /// Text that is part of the answer.
    pub text: String,
    /// True if a stop string was found: the answer ends after `text`.
    pub stopped: bool,
}

impl StopStrings {
    /// Stops at the first of `strings` to occur. Ignores empty strings.
    pub fn new(strings: impl IntoIterator<Item = String>) -> StopStrings {
        let strings = strings.into_iter().filter(|s| !s.is_empty()).collect();
        StopStrings { strings, held: String::new(), stopped: false }
    }

    /// Adds a piece of text. Holds back a suffix that may be the start of a stop string.
    pub fn push(&mut self, text: &str) -> Passed {
        if self.stopped {
            return Passed { text: String::new(), stopped: true };
        }
        self.held.push_str(text);
        // Find the stop string that ends first, so that the result does not depend on how the text is cut into pieces.
        let found = |s: &String| self.held.find(s.as_str()).map(|at| (at + s.len(), at));
        if let Some((_, at)) = self.strings.iter().filter_map(found).min() {
            self.held.truncate(at);
            self.stopped = true;
            return Passed { text: std::mem::take(&mut self.held), stopped: true };
        }
        let certain = self.held.len() - self.longest_partial_match();
        let rest = self.held.split_off(certain);
        Passed { text: std::mem::replace(&mut self.held, rest), stopped: false }
    }

    /// Ends the answer without a stop string. Returns the text held back.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Length in bytes of the longest suffix of `held` that starts a stop string.
    fn longest_partial_match(&self) -> usize {
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

/// The ids that end an answer, from a model's files (names and contents): `mlc-chat-config.json` with its conversation
/// template, `generation_config.json`, `config.json`, and `eos_token` of `tokenizer_config.json`.
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

/// The strings that end an answer, from the conversation template of `mlc-chat-config.json`.
pub fn stop_strings(files: &[(String, Vec<u8>)]) -> Vec<String> {
    let config = files.iter().find(|(name, _)| name == "mlc-chat-config.json");
    let json = config.and_then(|(_, content)| serde_json::from_slice::<Value>(content).ok());
    let list = json.as_ref().and_then(|json| json.pointer("/conv_template/stop_str")).and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_str).map(str::to_string).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let mut strings = StopStrings::new(stops.iter().map(|s| s.to_string()));
        let mut out = String::new();
        for piece in pieces {
            let passed = strings.push(piece);
            out.push_str(&passed.text);
            if passed.stopped {
                return (out, true);
            }
        }
        (out + &strings.finish(), false)
    }

    #[test]
    fn finds_strings_across_pieces() {
        assert_eq!(run(&["</s>"], &["Hello<", "/", "s>", "more"]), ("Hello".into(), true));
        assert_eq!(run(&["</s>"], &["a<", "b</", "i>"]), ("a<b</i>".into(), false));
        assert_eq!(run(&["\nUser:", "User"], &["x\nUs", "er: y"]), ("x\n".into(), true));
        assert_eq!(run(&["ね。"], &["そうだね", "。はい"]), ("そうだ".into(), true));
        assert_eq!(run(&[""], &["a", "b"]), ("ab".into(), false));
        assert_eq!(run(&["aab"], &["a", "a", "a", "b"]), ("a".into(), true));
    }

    #[test]
    fn holds_back_no_more_than_needed() {
        let mut strings = StopStrings::new(["###".to_string()]);
        assert_eq!(strings.push("a #"), Passed { text: "a ".into(), stopped: false });
        assert_eq!(strings.push("b"), Passed { text: "#b".into(), stopped: false });
        assert_eq!(strings.push("c##"), Passed { text: "c".into(), stopped: false });
        assert_eq!(strings.finish(), "##");
    }

    proptest! {
        #[test]
        fn the_result_does_not_depend_on_pieces(
            text in "[abé]{0,24}",
            stops in prop::collection::vec("[abé]{1,3}", 0..3),
            cuts in prop::collection::vec(0usize..24, 0..6),
        ) {
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let mut cuts: Vec<usize> = cuts.into_iter().filter(|at| text.is_char_boundary(*at)).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&str> = cuts.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect();
            let letters: Vec<String> = text.chars().map(String::from).collect();
            let letters: Vec<&str> = letters.iter().map(String::as_str).collect();
            let (out, stopped) = run(&stops, &pieces);
            prop_assert_eq!((out.clone(), stopped), run(&stops, &letters));
            prop_assert!(text.starts_with(&out));
            prop_assert_eq!(stopped, stops.iter().any(|stop| text.contains(stop)));
            prop_assert!(!stops.iter().any(|stop| out.contains(stop)));
        }
    }

    #[test]
    fn collects_stop_tokens_of_all_files() {
        let tokenizer = include_bytes!("../../../testdata/tokenizer/tiny-bpe/tokenizer.json");
        let tokenizer = Tokenizer::from_bytes(tokenizer).unwrap();
        let file = |name: &str, json: &str| (name.to_string(), json.as_bytes().to_vec());
        let files = [
            file("config.json", r#"{"eos_token_id": 7}"#),
            file("generation_config.json", r#"{"eos_token_id": [7, 9, -1, 1e20]}"#),
            file("tokenizer_config.json", r#"{"eos_token": {"content": "<|eot|>"}}"#),
            file("mlc-chat-config.json", r#"{"conv_template": {"stop_token_ids": [5], "stop_str": ["</s>"]}}"#),
        ];
        assert_eq!(stop_token_ids(&files, &tokenizer), [2, 5, 7, 9]);
        assert_eq!(stop_strings(&files), ["</s>"]);
        assert!(stop_token_ids(&[file("config.json", "not json")], &tokenizer).is_empty());
    }
}
