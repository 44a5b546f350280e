//! The tokenizer in mlc-chat-config.json: its files, its number of tokens, and its decoding of tokens to text.

use std::collections::HashSet;

use serde_json::{Value, json};

use crate::{Error, Result};

/// The tokenizer's files that MLC copies, in its order.
pub(crate) const TOKENIZER_FILES: [&str; 6] =
    ["tokenizer.model", "tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json", "tokenizer_config.json"];

/// Number of tokens: `len(tokenizer)` in transformers, which includes tokens that only tokenizer_config.json names.
pub(crate) fn active_vocab_size(tokenizer: &Value, tokenizer_config: Option<&Value>) -> usize {
    let mut tokens: HashSet<&str> = HashSet::new();
    match &tokenizer["model"]["vocab"] {
        Value::Object(vocab) => tokens.extend(vocab.keys().map(String::as_str)),
        // Unigram: pairs of token and score.
        Value::Array(vocab) => tokens.extend(vocab.iter().filter_map(|pair| pair[0].as_str())),
        _ => {}
    }
    let added = tokenizer["added_tokens"].as_array().into_iter().flatten();
    tokens.extend(added.filter_map(|token| token["content"].as_str()));
    if let Some(config) = tokenizer_config {
        let decoder = config["added_tokens_decoder"].as_object().into_iter().flat_map(|d| d.values());
        tokens.extend(decoder.filter_map(|token| token["content"].as_str()));
        for field in ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"] {
            tokens.extend(token_text(&config[field]));
        }
        let additional = config["additional_special_tokens"].as_array().into_iter().flatten();
        tokens.extend(additional.filter_map(token_text));
    }
    tokens.len()
}

/// The text of a special token, which is a string or an object.
fn token_text(token: &Value) -> Option<&str> {
    token.as_str().or_else(|| token["content"].as_str())
}

/// `tokenizer_info`: the rules for spaces and bytes in decoding.
pub(crate) fn tokenizer_info(tokenizer: &Value) -> Value {
    let decoders = steps(&tokenizer["decoder"], "decoders");
    let method = decoders.iter().rev().find_map(|decoder| match decoder["type"].as_str() {
        Some("ByteLevel") => Some("byte_level"),
        Some("ByteFallback") => Some("byte_fallback"),
        _ => None,
    });
    let prepends = |step: &&Value| step["type"] == "Prepend" && step["prepend"] == "▁";
    let strips =
        |step: &&Value| step["type"] == "Strip" && step["content"] == " " && step["start"] == 1 && step["stop"] == 0;
    json!({
        "token_postproc_method": method.unwrap_or("byte_fallback"),
        "prepend_space_in_encode": steps(&tokenizer["normalizer"], "normalizers").iter().any(prepends),
        "strip_space_in_decode": decoders.iter().any(strips),
    })
}

/// The steps of a part of the tokenizer's pipeline: one, or those of a sequence.
fn steps<'a>(part: &'a Value, list: &str) -> Vec<&'a Value> {
    match part["type"].as_str() {
        Some("Sequence") => part[list].as_array().into_iter().flatten().collect(),
        _ => vec![part],
    }
}

/// Refuses a tokenizer.json that lists an added token twice. Tokenizers disagree about such files.
pub(crate) fn check_added_tokens(tokenizer: &Value) -> Result<()> {
    let mut seen = HashSet::new();
    for content in tokenizer["added_tokens"].as_array().into_iter().flatten().filter_map(|t| t["content"].as_str()) {
        if !seen.insert(content) {
            return Err(Error::DuplicateToken { content: content.into() });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentencepiece_tokenizers_are_recognized() {
        let tokenizer = json!({
            "normalizer": {"type": "Sequence", "normalizers": [
                {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
            "decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace"}, {"type": "ByteFallback"}, {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        });
        let expected = json!({
            "token_postproc_method": "byte_fallback",
            "prepend_space_in_encode": true,
            "strip_space_in_decode": true,
        });
        assert_eq!(tokenizer_info(&tokenizer), expected);
    }

    #[test]
    fn tokens_are_counted_once() {
        let tokenizer = json!({
            "model": {"vocab": {"a": 0, "b": 1, "<s>": 2}},
            "added_tokens": [{"content": "<s>", "id": 2}, {"content": "<pad>", "id": 3}],
        });
        assert_eq!(active_vocab_size(&tokenizer, None), 4);
        let config = json!({"bos_token": "<s>", "pad_token": {"content": "<pad2>"}});
        assert_eq!(active_vocab_size(&tokenizer, Some(&config)), 5);
    }

    #[test]
    fn a_token_listed_twice_is_refused() {
        let tokenizer = json!({"added_tokens": [{"content": "<s>"}, {"content": "<s>"}]});
        assert!(matches!(check_added_tokens(&tokenizer), Err(Error::DuplicateToken { .. })));
    }
}
