//! [`Tokenizer`]: text to token ids and back. [`StreamDecoder`]: a stream of ids to complete characters.
//!
//! The engine encodes conversations with it (through [`crate::chat_template`]), the quantizer its calibration text. The
//! `tokenizers` crate does the work. This file adds three guarantees: control tokens typed by a user stay text, a hostile file
//! cannot crash the process, and a stream gives the same text as decoding all ids at once. `prefix.rs` has the rule for BOS.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use model_format::caught::caught;

use super::prefix::{self, AddBos};
use crate::{Error, Result};

/// The tokenizer of a model: `tokenizer.json`, with `add_bos_token` of `tokenizer_config.json`. Cheap to clone.
#[derive(Clone)]
pub struct Tokenizer {
    shared: Arc<Shared>,
}

struct Shared {
    /// Behind a lock, because parsing of control tokens is a switch inside of it.
    inner: Mutex<tokenizers::Tokenizer>,
    control_ids: HashSet<u32>,
    control_tokens: Vec<String>,
    vocab_size: usize,
    prefix: Vec<u32>,
}

impl Tokenizer {
    /// Loads the tokenizer from a model's files (names and contents). `location` is their folder, for errors.
    pub fn from_files(files: &[(String, Vec<u8>)], location: &str) -> Result<Tokenizer> {
        const FILE: &str = "tokenizer.json";
        let found = files.iter().find(|(name, _)| name == FILE);
        let missing = || model_format::Error::MissingFile { file: FILE.into(), folder: location.into() };
        Tokenizer::new(&found.ok_or_else(missing)?.1, &prefix::add_bos(files)?)
    }

    /// Loads a `tokenizer.json` without other files.
    pub fn from_bytes(tokenizer_json: &[u8]) -> Result<Tokenizer> {
        Tokenizer::new(tokenizer_json, &AddBos::Unset)
    }

    /// Ignores truncation and padding settings of the file.
    fn new(tokenizer_json: &[u8], add_bos: &AddBos) -> Result<Tokenizer> {
        let mut inner = guarded(|| tokenizers::Tokenizer::from_bytes(tokenizer_json))?;
        guarded(|| inner.with_truncation(None).map(|_| ()))?;
        inner.with_padding(None);

        let mut control: Vec<(u32, String)> = inner
            .get_added_tokens_decoder()
            .into_iter()
            .filter(|(_, token)| token.special && !token.content.is_empty())
            .map(|(id, token)| (id, token.content))
            .collect();
        control.sort();
        let vocab_size = inner.get_vocab_size(true);
        let prefix = guarded(|| prefix::ids(&inner, add_bos))?;
        Ok(Tokenizer {
            shared: Arc::new(Shared {
                inner: Mutex::new(inner),
                control_ids: control.iter().map(|(id, _)| *id).collect(),
                control_tokens: control.into_iter().map(|(_, content)| content).collect(),
                vocab_size,
                prefix,
            }),
        })
    }

    /// The tokens before a text: BOS, nothing, or rarely several tokens. Tokens after a text (EOS) are never added, because the
    /// model continues it.
    pub fn prefix(&self) -> &[u32] {
        &self.shared.prefix
    }

    /// The ids of a text for a model: [`Tokenizer::prefix`], then [`Tokenizer::encode`]. A text that starts with the prefix does
    /// not get it twice.
    pub fn encode_with_prefix(&self, text: &str) -> Result<Vec<u32>> {
        let ids = self.encode(text)?;
        Ok(if ids.starts_with(self.prefix()) { ids } else { [self.prefix(), &ids].concat() })
    }

    /// The ids of `text`, with control tokens like `</s>` parsed. Adds neither prefix nor suffix: for parts of a text, and for
    /// prompts of a chat template.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.run(text, true)?.get_ids().to_vec())
    }

    /// The ids of `text` as plain text: a control token in it is encoded as its characters.
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>> {
        let ids = self.run(text, false)?.get_ids().to_vec();
        if !ids.iter().any(|id| self.is_control(*id)) {
            return Ok(ids);
        }
        // The vocabulary has a control token as an ordinary one too. Encode character by character to avoid it.
        let mut ids = Vec::new();
        for c in text.chars() {
            let id = self.run(c.encode_utf8(&mut [0; 4]), false)?.get_ids().to_vec();
            ids.extend(id.into_iter().filter(|id| !self.is_control(*id)));
        }
        Ok(ids)
    }

    /// The byte ranges and ids of the control tokens in `text`, in order. A range includes white space that belongs to the
    /// token.
    pub fn control_tokens_in(&self, text: &str) -> Result<Vec<(Range<usize>, u32)>> {
        let encoding = self.run(text, true)?;
        let found = encoding.get_ids().iter().zip(encoding.get_offsets()).filter(|(id, _)| self.is_control(**id));
        Ok(found.map(|(id, (start, end))| (*start..*end, *id)).collect())
    }

    /// The text of `ids`. Skips control tokens if `skip_control`. Bytes that are not UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32], skip_control: bool) -> Result<String> {
        let inner = self.shared.inner.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        guarded(|| inner.decode(ids, skip_control))
    }

    /// Number of tokens, added ones included. The model's `vocab_size` is often a rounded-up value.
    pub fn vocab_size(&self) -> usize {
        self.shared.vocab_size
    }

    /// The id of the token with exactly this text.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.shared.inner.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).token_to_id(token)
    }

    /// The text of a token. `None` if no token has this id.
    pub fn token(&self, id: u32) -> Option<String> {
        let inner = self.shared.inner.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        inner.id_to_token(id)
    }

    /// True if the id is a control token (`special` in tokenizer.json).
    pub fn is_control(&self, id: u32) -> bool {
        self.shared.control_ids.contains(&id)
    }

    /// The texts of all control tokens, by rising id.
    pub fn control_tokens(&self) -> &[String] {
        &self.shared.control_tokens
    }

    fn run(&self, text: &str, parse_control: bool) -> Result<tokenizers::Encoding> {
        let mut inner = self.shared.inner.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        inner.set_encode_special_tokens(!parse_control);
        guarded(|| inner.encode(text, false))
    }

    /// True if decoding skips this id: an unknown id, or a control token if `skip_control`.
    fn is_silent(&self, id: u32, skip_control: bool) -> bool {
        let inner = self.shared.inner.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        (skip_control && self.is_control(id)) || inner.id_to_token(id).is_none()
    }
}

/// Runs the `tokenizers` crate. Turns its errors, and panics caused by a hostile tokenizer.json, into our errors.
fn guarded<T>(run: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
    match caught(run) {
        Ok(result) => result.map_err(|error| Error::Tokenizer { reason: error.to_string() }),
        Err(reason) => Err(Error::Tokenizer { reason }),
    }
}

/// Decodes a stream of ids, and returns text as soon as its characters are complete.
///
/// The joined results of [`push`](StreamDecoder::push) and [`finish`](StreamDecoder::finish) equal [`Tokenizer::decode`] of all
/// ids, with one exception: if a byte of a run of byte tokens is invalid, [`Tokenizer::decode`] replaces the whole run by
/// U+FFFD, but the stream has already returned the valid characters before it.
pub struct StreamDecoder {
    tokenizer: Tokenizer,
    skip_control: bool,
    /// The last ids with complete text, then the ids whose text is incomplete. The former are context for the decoder, which
    /// drops a leading space only at the start of a text.
    window: Vec<u32>,
    /// Number of ids in `window` with complete text.
    context: usize,
    /// The part of the window's text that was returned already.
    emitted: String,
}

const REPLACEMENT: char = '\u{FFFD}';

impl StreamDecoder {
    /// A decoder at the start of a text. Skips control tokens if `skip_control`.
    pub fn new(tokenizer: &Tokenizer, skip_control: bool) -> StreamDecoder {
        StreamDecoder {
            tokenizer: tokenizer.clone(),
            skip_control,
            window: Vec::new(),
            context: 0,
            emitted: String::new(),
        }
    }

    /// Adds an id. Returns the text that is now complete; often it is empty.
    pub fn push(&mut self, id: u32) -> Result<String> {
        if self.tokenizer.is_silent(id, self.skip_control) {
            return Ok(String::new());
        }
        self.window.push(id);
        let text = self.window_text()?;
        // U+FFFD at the end may be a character whose last bytes are missing.
        let certain = text.trim_end_matches(REPLACEMENT);
        let new = certain.get(self.emitted.len()..).unwrap_or_default().to_string();
        if certain.len() == text.len() {
            self.window.drain(..self.context);
            self.context = self.window.len();
            self.emitted = self.tokenizer.decode(&self.window, self.skip_control)?;
        } else {
            self.emitted.push_str(&new);
        }
        Ok(new)
    }

    /// Ends the stream. Returns the text held back, with U+FFFD for incomplete characters.
    pub fn finish(&mut self) -> Result<String> {
        let text = self.window_text()?;
        let rest = text.get(self.emitted.len()..).unwrap_or_default().to_string();
        self.window.clear();
        self.context = 0;
        self.emitted.clear();
        Ok(rest)
    }

    /// The window's text. Starts with `emitted`.
    fn window_text(&self) -> Result<String> {
        let text = self.tokenizer.decode(&self.window, self.skip_control)?;
        if text.starts_with(&self.emitted) {
            return Ok(text);
        }
        // A byte token is invalid, so the decoder now replaces the whole run of byte tokens.
        let tail = self.tokenizer.decode(&self.window[self.context..], self.skip_control)?;
        Ok(format!("{}{tail}", self.emitted))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    const TINY: &[u8] = include_bytes!("../../../testdata/tokenizer/tiny-bpe/tokenizer.json");
    const TINY_CASES: &[u8] = include_bytes!("../../../testdata/tokenizer/tiny-bpe/cases.json");
    const SMOLLM2: &[u8] = include_bytes!("../../../testdata/tokenizer/smollm2/tokenizer.json");
    const SMOLLM2_CASES: &[u8] = include_bytes!("../../../testdata/tokenizer/smollm2/cases.json");

    /// A vocabulary in the style of SentencePiece: `▁` for a space, byte tokens for unknown characters, and a decoder that drops
    /// the first space.
    fn sentencepiece() -> Tokenizer {
        let mut vocab = serde_json::Map::new();
        vocab.insert("</s>".into(), 0.into());
        for byte in 0..=255u32 {
            vocab.insert(format!("<0x{byte:02X}>"), (byte + 1).into());
        }
        for (i, piece) in ["▁", "a", "b", "▁a", "▁▁", "é", "ab"].iter().enumerate() {
            vocab.insert(piece.to_string(), (257 + i).into());
        }
        let json = serde_json::json!({
            "version": "1.0",
            "added_tokens": [{ "id": 0, "content": "</s>", "special": true, "normalized": false,
                "lstrip": false, "rstrip": false, "single_word": false }],
            "normalizer": { "type": "Sequence", "normalizers": [
                { "type": "Prepend", "prepend": "▁" },
                { "type": "Replace", "pattern": { "String": " " }, "content": "▁" },
            ] },
            "decoder": { "type": "Sequence", "decoders": [
                { "type": "Replace", "pattern": { "String": "▁" }, "content": " " },
                { "type": "ByteFallback" }, { "type": "Fuse" },
                { "type": "Strip", "content": " ", "start": 1, "stop": 0 },
            ] },
            "model": { "type": "BPE", "byte_fallback": true, "unk_token": "</s>", "vocab": vocab,
                "merges": [["▁", "a"], ["▁", "▁"], ["a", "b"]] },
        });
        Tokenizer::from_bytes(json.to_string().as_bytes()).unwrap()
    }

    fn stream(tokenizer: &Tokenizer, ids: &[u32], skip_control: bool) -> String {
        let mut decoder = StreamDecoder::new(tokenizer, skip_control);
        let mut out: String = ids.iter().map(|id| decoder.push(*id).unwrap()).collect();
        out.push_str(&decoder.finish().unwrap());
        out
    }

    #[test]
    fn encodings_equal_the_recorded_ones() {
        for (tokenizer, cases) in [(TINY, TINY_CASES), (SMOLLM2, SMOLLM2_CASES)] {
            let tokenizer = Tokenizer::from_bytes(tokenizer).unwrap();
            let golden: Value = serde_json::from_slice(cases).unwrap();
            for case in golden["cases"].as_array().unwrap() {
                let text = case["text"].as_str().unwrap();
                let ids = tokenizer.encode(text).unwrap();
                assert_eq!(Value::from(ids.clone()), case["ids"], "{text:?}");
                assert_eq!(tokenizer.decode(&ids, false).unwrap(), case["decoded"].as_str().unwrap());
                assert_eq!(tokenizer.decode(&ids, true).unwrap(), case["decoded_skip_special"].as_str().unwrap());
                assert_eq!(stream(&tokenizer, &ids, false), case["decoded"].as_str().unwrap());
                assert_eq!(stream(&tokenizer, &ids, true), case["decoded_skip_special"].as_str().unwrap());
                let plain = case.get("ids_special_as_plain_text").unwrap_or(&case["ids"]);
                assert_eq!(&Value::from(tokenizer.encode_plain(text).unwrap()), plain, "{text:?}");
            }
        }
    }

    #[test]
    fn a_character_is_returned_with_its_last_byte() {
        let tokenizer = Tokenizer::from_bytes(TINY).unwrap();
        let ids = tokenizer.encode_plain("日!").unwrap();
        let mut decoder = StreamDecoder::new(&tokenizer, true);
        let pieces: Vec<String> = ids.iter().map(|id| decoder.push(*id).unwrap()).collect();
        assert_eq!(pieces, ["", "", "日", "!"]);
        assert_eq!(decoder.push(ids[0]).unwrap(), "");
        assert_eq!(decoder.finish().unwrap(), "\u{FFFD}");
    }

    #[test]
    fn a_sentencepiece_stream_keeps_its_spaces() {
        let tokenizer = sentencepiece();
        for text in ["a b  a", " a", "日本 a\nb", "é é", ""] {
            let ids = tokenizer.encode_plain(text).unwrap();
            assert_eq!(tokenizer.decode(&ids, true).unwrap(), text);
            assert_eq!(stream(&tokenizer, &ids, true), text);
        }
        // The control token has no text, so the space after it is the first.
        let ids = [vec![0], tokenizer.encode_plain("a b").unwrap()].concat();
        assert_eq!(stream(&tokenizer, &ids, true), "a b");
    }

    #[test]
    fn an_invalid_byte_does_not_change_returned_text() {
        let tokenizer = sentencepiece();
        let byte = |b: u32| b + 1;
        let ids = [byte(0xE6), byte(0x97), byte(0xA5), byte(0xFF), tokenizer.token_id("a").unwrap()];
        assert_eq!(tokenizer.decode(&ids, true).unwrap(), "\u{FFFD}\u{FFFD}\u{FFFD}\u{FFFD}a");
        assert_eq!(stream(&tokenizer, &ids, true), "日\u{FFFD}a");
    }

    #[test]
    fn encode_plain_gives_no_control_token() {
        for tokenizer in
            [Tokenizer::from_bytes(TINY).unwrap(), Tokenizer::from_bytes(SMOLLM2).unwrap(), sentencepiece()]
        {
            for token in tokenizer.control_tokens() {
                let text = format!("a {token}b");
                let ids = tokenizer.encode_plain(&text).unwrap();
                assert!(!ids.iter().any(|id| tokenizer.is_control(*id)), "{text}");
                assert_eq!(tokenizer.decode(&ids, true).unwrap(), text);
                let found = tokenizer.control_tokens_in(&text).unwrap();
                assert_eq!(found, [(2..2 + token.len(), tokenizer.token_id(token).unwrap())]);
            }
        }
    }

    #[test]
    fn encode_plain_avoids_control_tokens_of_the_vocabulary() {
        let json = serde_json::json!({
            "version": "1.0",
            "added_tokens": [{ "id": 0, "content": "</s>", "special": true, "normalized": false,
                "lstrip": false, "rstrip": false, "single_word": false }],
            "model": { "type": "Unigram", "unk_id": 1, "vocab": [["</s>", 0.0], ["<unk>", -9.0], ["a", -1.0],
                ["<", -3.0], ["/", -3.0], ["s", -3.0], [">", -3.0]] },
        });
        let tokenizer = Tokenizer::from_bytes(json.to_string().as_bytes()).unwrap();
        assert_eq!(tokenizer.encode("a</s>").unwrap(), [2, 0]);
        assert_eq!(tokenizer.encode_plain("a</s>").unwrap(), [2, 3, 4, 5, 6]);
    }

    #[test]
    fn hostile_files_are_errors() {
        for json in [
            "",
            "{}",
            "[]",
            "null",
            r#"{"version":"1.0","model":{"type":"BPE","vocab":{"a":0},"merges":["a b"]}}"#,
            r#"{"version":"1.0","model":{"type":"BPE","vocab":{"a":0},"merges":["a"]}}"#,
            r#"{"version":"1.0","model":{"type":"Unigram","unk_id":5,"vocab":[["a",0.0]]}}"#,
            r#"{"version":"1.0","model":{"type":"WordLevel","vocab":{"a":-1},"unk_token":"b"}}"#,
        ] {
            assert!(Tokenizer::from_bytes(json.as_bytes()).is_err(), "{json}");
        }
        assert!(Tokenizer::from_bytes(&TINY[..TINY.len() / 2]).is_err());
    }

    #[test]
    fn truncation_settings_are_ignored() {
        let mut json: Value = serde_json::from_slice(TINY).unwrap();
        json["truncation"] = serde_json::json!({
            "direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0,
        });
        let tokenizer = Tokenizer::from_bytes(json.to_string().as_bytes()).unwrap();
        assert!(tokenizer.encode("a long enough text").unwrap().len() > 2);
    }

    /// 100,000 random lists of ids, with many byte tokens, so that characters are cut at every position.
    #[test]
    fn random_streams_equal_decode() {
        use rand::{Rng, SeedableRng};
        let of = |bytes: &[u8]| Tokenizer::from_bytes(bytes).unwrap();
        let tokenizers = [of(TINY), of(SMOLLM2), sentencepiece()];
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
        let mut cut = 0;
        for count in 0..100_000 {
            let tokenizer = &tokenizers[count % tokenizers.len()];
            let most = tokenizer.vocab_size() as u32;
            let ids: Vec<u32> = (0..rng.random_range(1..12))
                .map(|_| if rng.random() { rng.random_range(0..most.min(260)) } else { rng.random_range(0..most) })
                .collect();
            let skip_control = rng.random();
            let whole = tokenizer.decode(&ids, skip_control).unwrap();
            // An invalid byte makes SentencePiece's decoder replace valid ones before it, which the stream has returned.
            let is_replaced_late = count % tokenizers.len() == 2 && whole.contains(REPLACEMENT);
            let streamed = stream(tokenizer, &ids, skip_control);
            assert!(streamed == whole || is_replaced_late, "{ids:?}: {streamed:?}, expected {whole:?}");
            cut += usize::from(whole.contains(REPLACEMENT));
        }
        assert!(cut > 10_000, "only {cut} lists have invalid bytes");
    }

    proptest! {
        #[test]
        fn streams_equal_decode(ids in prop::collection::vec(0u32..600, 0..60), skip_control: bool) {
            let tokenizer = Tokenizer::from_bytes(TINY).unwrap();
            prop_assert_eq!(stream(&tokenizer, &ids, skip_control), tokenizer.decode(&ids, skip_control).unwrap());
        }

        #[test]
        fn streams_of_bytes_equal_decode(ids in prop::collection::vec(128u32..260, 0..40)) {
            let tokenizer = Tokenizer::from_bytes(TINY).unwrap();
            prop_assert_eq!(stream(&tokenizer, &ids, true), tokenizer.decode(&ids, true).unwrap());
        }

        #[test]
        fn text_is_decoded_unchanged(text in "\\PC{0,30}") {
            let tokenizer = Tokenizer::from_bytes(TINY).unwrap();
            let ids = tokenizer.encode_plain(&text).unwrap();
            prop_assert_eq!(stream(&tokenizer, &ids, true), text);
        }
    }
}
