//! Rebuilds tokenizer.json and tokenizer_config.json from a GGUF file's metadata.
//!
//! A GGUF file has the vocabulary, but only the name of the pre-tokenizer. `vocabularies.json` maps these names to the
//! settings of tokenizer.json. An unknown name is an error, because a slightly wrong tokenizer silently degrades the
//! model.

use std::cmp::Ordering;
use std::collections::HashMap;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::config::pretty;
use super::metadata::Metadata;
use crate::Result;

/// A tokenizer family: one entry of `vocabularies.json`.
#[derive(Deserialize)]
struct Vocabulary {
    /// `tokenizer.ggml.model`.
    model: String,
    /// Values of `tokenizer.ggml.pre` for this entry.
    pre: Vec<String>,
    /// True for SentencePiece: characters outside the vocabulary become byte tokens, and scores determine the merge
    /// order.
    byte_fallback: bool,
    ignore_merges: bool,
    /// Default of `tokenizer.ggml.add_bos_token`: true if the BOS token is added before a text.
    add_bos: bool,
    normalizer: Value,
    pre_tokenizer: Value,
    decoder: Value,
}

/// Token types, as numbered in `tokenizer.ggml.token_type`.
mod kind {
    pub const NORMAL: u64 = 1;
    pub const UNKNOWN: u64 = 2;
    pub const CONTROL: u64 = 3;
    pub const USER_DEFINED: u64 = 4;
}

/// The files of a tokenizer.
pub(super) struct TokenizerFiles {
    /// tokenizer.json.
    pub tokenizer: String,
    /// tokenizer_config.json, with the chat template.
    pub config: String,
    /// special_tokens_map.json.
    pub special_tokens: String,
}

/// Rebuilds the tokenizer files. `vocab_size` is the number of rows in the embedding table.
pub(super) fn tokenizer_files(metadata: &Metadata, vocab_size: usize) -> Result<TokenizerFiles> {
    let vocabulary = vocabulary(metadata)?;
    let tokens = metadata.strings("tokenizer.ggml.tokens")?;
    if tokens.len() > vocab_size {
        return Err(metadata.bad(format!("it has {} tokens, but {vocab_size} embeddings", tokens.len())));
    }
    let kinds = metadata.opt_integers("tokenizer.ggml.token_type")?.unwrap_or_else(|| vec![kind::NORMAL; tokens.len()]);
    if kinds.len() != tokens.len() {
        return Err(metadata.bad(format!("it has {} tokens, but {} token types", tokens.len(), kinds.len())));
    }
    let mut ids = HashMap::with_capacity(tokens.len());
    for (id, &token) in tokens.iter().enumerate() {
        if let Some(first) = ids.insert(token, id) {
            return Err(metadata.bad(format!("tokens {first} and {id} are both {token:?}")));
        }
    }
    let merges = if vocabulary.byte_fallback {
        merges_from_scores(metadata, &tokens, &kinds, &ids)?
    } else {
        listed_merges(metadata, &ids)?
    };

    let special = SpecialTokens::read(metadata, &tokens)?;
    let add_bos = metadata.opt_bool("tokenizer.ggml.add_bos_token")?.unwrap_or(vocabulary.add_bos);
    let first = special.bos.filter(|_| add_bos);
    let added: Vec<(usize, Value)> = (0..tokens.len())
        .filter(|&id| matches!(kinds[id], kind::UNKNOWN | kind::CONTROL | kind::USER_DEFINED))
        .map(|id| (id, added_token(tokens[id], kinds[id] != kind::USER_DEFINED)))
        .collect();
    let unknown = special.unk.filter(|_| vocabulary.byte_fallback).map(|id| tokens[id]);

    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added.iter().map(|(id, token)| with_id(*id, token)).collect::<Vec<_>>(),
        "normalizer": vocabulary.normalizer,
        "pre_tokenizer": vocabulary.pre_tokenizer,
        "post_processor": first.map_or(Value::Null, |id| prepend_token(tokens[id], id)),
        "decoder": vocabulary.decoder,
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": unknown,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": vocabulary.byte_fallback,
            "byte_fallback": vocabulary.byte_fallback,
            "ignore_merges": vocabulary.ignore_merges,
            "vocab": tokens.iter().enumerate().map(|(id, &token)| (token.into(), id.into())).collect::<Map<_, _>>(),
            "merges": merges,
        },
    });

    let named = special.named(&tokens);
    let mut config = Map::new();
    config.insert("add_bos_token".into(), first.is_some().into());
    config.insert("add_prefix_space".into(), false.into());
    let decoder = added.into_iter().map(|(id, token)| (id.to_string(), token));
    config.insert("added_tokens_decoder".into(), Value::Object(decoder.collect()));
    config.extend(named.clone());
    if let Some(template) = metadata.opt_str("tokenizer.chat_template")? {
        config.insert("chat_template".into(), template.into());
    }
    config.insert("clean_up_tokenization_spaces".into(), false.into());
    config.insert("tokenizer_class".into(), "PreTrainedTokenizerFast".into());

    Ok(TokenizerFiles {
        tokenizer: pretty(&tokenizer),
        config: pretty(&Value::Object(config)),
        special_tokens: pretty(&Value::Object(named)),
    })
}

/// The tokenizer family of the file, adjusted to `tokenizer.ggml.add_space_prefix`.
fn vocabulary(metadata: &Metadata) -> Result<Vocabulary> {
    let table: Vec<Vocabulary> = serde_json::from_str(include_str!("vocabularies.json")).expect("the table is valid");
    let model = metadata.str("tokenizer.ggml.model")?;
    let pre = metadata.opt_str("tokenizer.ggml.pre")?.unwrap_or("default");
    let found = table.into_iter().find(|row| row.model == model && row.pre.iter().any(|name| name == pre));
    let mut found =
        found.ok_or_else(|| metadata.unsupported(format!("its tokenizer is `{model}` with pre-tokenizer `{pre}`")))?;
    if found.byte_fallback && metadata.opt_bool("tokenizer.ggml.add_space_prefix")? == Some(false) {
        for (part, list, step) in
            [(&mut found.normalizer, "normalizers", "Prepend"), (&mut found.decoder, "decoders", "Strip")]
        {
            part[list].as_array_mut().expect("a sequence").retain(|entry| entry["type"] != step);
        }
    }
    Ok(found)
}

/// The merges listed in the file, each as `left right`.
fn listed_merges(metadata: &Metadata, ids: &HashMap<&str, usize>) -> Result<Vec<String>> {
    let merges = metadata.strings("tokenizer.ggml.merges")?;
    for merge in &merges {
        let known = merge.split_once(' ').is_some_and(|(left, right)| {
            ids.contains_key(left) && ids.contains_key(right) && ids.contains_key(format!("{left}{right}").as_str())
        });
        if !known {
            return Err(metadata.bad(format!("the merge {merge:?} does not join two tokens to a third")));
        }
    }
    Ok(merges.into_iter().map(String::from).collect())
}

/// Merges of a SentencePiece vocabulary, which has scores instead of merges: it always forms the piece with the highest
/// score. Each split of a piece into two pieces is a merge. The merges are in descending order of score, as in
/// transformers' conversion.
fn merges_from_scores(
    metadata: &Metadata,
    tokens: &[&str],
    kinds: &[u64],
    ids: &HashMap<&str, usize>,
) -> Result<Vec<String>> {
    let scores = metadata.opt_floats("tokenizer.ggml.scores")?.unwrap_or_default();
    if scores.len() != tokens.len() || scores.iter().any(|score| score.is_nan()) {
        return Err(metadata.bad(format!(
            "it has {} tokens, but {} scores, or a score is NaN",
            tokens.len(),
            scores.len()
        )));
    }
    let normal = |piece: &str| ids.get(piece).copied().filter(|&id| kinds[id] == kind::NORMAL);
    let mut merges = Vec::new();
    for (id, piece) in tokens.iter().enumerate().filter(|&(id, _)| kinds[id] == kind::NORMAL) {
        // Reject implausibly long pieces: the time per piece is quadratic in its length.
        if piece.len() > 1024 {
            return Err(metadata.bad(format!("token {id} has {} bytes", piece.len())));
        }
        let mut splits: Vec<_> = piece
            .char_indices()
            .skip(1)
            .filter_map(|(at, _)| Some((normal(&piece[..at])?, normal(&piece[at..])?)))
            .collect();
        splits.sort_unstable();
        merges.extend(splits.into_iter().map(|(left, right)| (scores[id], tokens[left], tokens[right])));
    }
    let order = |&(score, left, right): &(f32, &str, &str)| (score, left.chars().count(), right.chars().count());
    merges.sort_by(|a, b| order(b).partial_cmp(&order(a)).unwrap_or(Ordering::Equal));
    if merges.iter().any(|(_, left, right)| left.contains(' ') || right.contains(' ')) {
        return Err(metadata.unsupported("its pieces contain plain spaces"));
    }
    Ok(merges.into_iter().map(|(_, left, right)| format!("{left} {right}")).collect())
}

/// Ids of the special tokens.
struct SpecialTokens {
    bos: Option<usize>,
    eos: Option<usize>,
    pad: Option<usize>,
    unk: Option<usize>,
}

impl SpecialTokens {
    fn read(metadata: &Metadata, tokens: &[&str]) -> Result<SpecialTokens> {
        let id = |name: &str| metadata.opt_token_id(&format!("tokenizer.ggml.{name}_token_id"), tokens.len());
        Ok(SpecialTokens { bos: id("bos")?, eos: id("eos")?, pad: id("padding")?, unk: id("unknown")? })
    }

    /// The special tokens under their names in special_tokens_map.json.
    fn named(&self, tokens: &[&str]) -> Map<String, Value> {
        [("bos_token", self.bos), ("eos_token", self.eos), ("pad_token", self.pad), ("unk_token", self.unk)]
            .into_iter()
            .filter_map(|(name, id)| Some((name.into(), tokens[id?].into())))
            .collect()
    }
}

fn added_token(content: &str, special: bool) -> Value {
    json!({
        "content": content,
        "single_word": false,
        "lstrip": false,
        "rstrip": false,
        "normalized": false,
        "special": special,
    })
}

fn with_id(id: usize, token: &Value) -> Value {
    let mut entry = Map::from_iter([("id".into(), id.into())]);
    entry.extend(token.as_object().expect("made as an object").clone());
    Value::Object(entry)
}

/// A post-processor that adds one token before every text.
fn prepend_token(token: &str, id: usize) -> Value {
    let special = |type_id: usize| json!({ "SpecialToken": { "id": token, "type_id": type_id } });
    let sequence = |name: &str, type_id: usize| json!({ "Sequence": { "id": name, "type_id": type_id } });
    json!({
        "type": "TemplateProcessing",
        "single": [special(0), sequence("A", 0)],
        "pair": [special(0), sequence("A", 0), special(1), sequence("B", 1)],
        "special_tokens": { token: { "id": token, "ids": [id], "tokens": [token] } },
    })
}
