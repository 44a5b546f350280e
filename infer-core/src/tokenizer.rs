//! [`Tokenizer`]: text to token ids and back; [`StreamDecoder`]: ids that arrive one by one to whole characters.
//!
//! The engine encodes conversations with it (through [`crate::chat_template`]), the quantizer its calibration text. The
//! algorithms are those of the `tokenizers` crate; what is ours is that control tokens typed by a user stay text, that
//! a crafted file cannot take the process down, and that a stream equals the decoding of the whole.

use std::collections::HashSet;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

use crate::{Error, Result};

/// The tokenizer of a model: `tokenizer.json`. Cloning shares it.
#[derive(Clone)]
pub struct Tokenizer {
    shared: Arc<Shared>,
}

struct Shared {
    /// Behind a lock because whether control tokens are recognised is a switch inside of it.
    inner: Mutex<tokenizers::Tokenizer>,
    control_ids: HashSet<u32>,
    control_tokens: Vec<String>,
    vocab_size: usize,
}

impl Tokenizer {
    /// Reads the content of a `tokenizer.json`. Truncation and padding that it may ask for are switched off.
    pub fn from_bytes(tokenizer_json: &[u8]) -> Result<Tokenizer> {
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
        Ok(Tokenizer {
            shared: Arc::new(Shared {
                inner: Mutex::new(inner),
                control_ids: control.iter().map(|(id, _)| *id).collect(),
                control_tokens: control.into_iter().map(|(_, content)| content).collect(),
                vocab_size,
            }),
        })
    }

    /// The ids of `text`, in which control tokens such as `</s>` are recognised. Nothing is added in front or behind.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.run(text, true)?.get_ids().to_vec())
    }

    /// The ids of `text` as plain text: a control token written in it becomes the characters that it is written with.
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>> {
        let ids = self.run(text, false)?.get_ids().to_vec();
        if !ids.iter().any(|id| self.is_control(*id)) {
            return Ok(ids);
        }
        // The model itself has a control token in its vocabulary and finds it whole. One character is never one.
        let mut ids = Vec::new();
        for c in text.chars() {
            let id = self.run(c.encode_utf8(&mut [0; 4]), false)?.get_ids().to_vec();
            ids.extend(id.into_iter().filter(|id| !self.is_control(*id)));
        }
        Ok(ids)
    }

    /// Where control tokens are recognised in `text`, in bytes and in order, each with its id. A range includes the
    /// white space that the token swallows.
    pub fn control_tokens_in(&self, text: &str) -> Result<Vec<(Range<usize>, u32)>> {
        let encoding = self.run(text, true)?;
        let found = encoding.get_ids().iter().zip(encoding.get_offsets()).filter(|(id, _)| self.is_control(**id));
        Ok(found.map(|(id, (start, end))| (*start..*end, *id)).collect())
    }

    /// The text of `ids`, control tokens left out if `skip_control`. Bytes that are no UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32], skip_control: bool) -> Result<String> {
        let inner = self.shared.inner.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        guarded(|| inner.decode(ids, skip_control))
    }

    /// How many tokens there are, added ones included. The model's own `vocab_size` is often rounded up from this.
    pub fn vocab_size(&self) -> usize {
        self.shared.vocab_size
    }

    /// The id of the token written exactly so.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.shared.inner.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).token_to_id(token)
    }

    /// Whether the id is a control token (`special` in tokenizer.json): never text.
    pub fn is_control(&self, id: u32) -> bool {
        self.shared.control_ids.contains(&id)
    }

    /// How the control tokens are written, in the order of their ids.
    pub fn control_tokens(&self) -> &[String] {
        &self.shared.control_tokens
    }

    fn run(&self, text: &str, recognise_control: bool) -> Result<tokenizers::Encoding> {
        let mut inner = self.shared.inner.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        inner.set_encode_special_tokens(!recognise_control);
        guarded(|| inner.encode(text, false))
    }

    /// Whether decoding leaves this id out: a control token where those are skipped, or no token at all.
    fn is_silent(&self, id: u32, skip_control: bool) -> bool {
        let inner = self.shared.inner.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        (skip_control && self.is_control(id)) || inner.id_to_token(id).is_none()
    }
}

/// Runs the `tokenizers` crate; its errors and its panics (a crafted tokenizer.json causes them) become ours.
fn guarded<T>(run: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(Error::Tokenizer { reason: error.to_string() }),
        Err(panic) => {
            let said = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
            Err(Error::Tokenizer { reason: said.unwrap_or("it cannot handle this tokenizer.json").to_string() })
        }
    }
}

/// Decodes ids as they come and hands out text as soon as its characters are whole.
///
/// What [`push`](StreamDecoder::push) and [`finish`](StreamDecoder::finish) return, joined, is
/// [`Tokenizer::decode`] of all ids. (One exception, in which the stream is the better text: a byte-fallback tokenizer
/// decodes a whole run of byte tokens to U+FFFD if one of them is wrong; here those before it are already out.)
pub struct StreamDecoder {
    tokenizer: Tokenizer,
    skip_control: bool,
    /// The ids that were complete last, as the context that decoders want (a leading space is dropped only at the very
    /// start), then those that are not complete yet.
    window: Vec<u32>,
    context: usize,
    /// The part of the window's text that is out already.
    emitted: String,
}

const REPLACEMENT: char = '\u{FFFD}';

impl StreamDecoder {
    /// A decoder at the start of a text. Control tokens leave no text if `skip_control`.
    pub fn new(tokenizer: &Tokenizer, skip_control: bool) -> StreamDecoder {
        StreamDecoder {
            tokenizer: tokenizer.clone(),
            skip_control,
            window: Vec::new(),
            context: 0,
            emitted: String::new(),
        }
    }

    /// Takes the next id; returns the text that is certain now, often none.
    pub fn push(&mut self, id: u32) -> Result<String> {
        if self.tokenizer.is_silent(id, self.skip_control) {
            return Ok(String::new());
        }
        self.window.push(id);
        let text = self.window_text()?;
        // What ends in U+FFFD may be a character whose last bytes are still to come.
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

    /// The end of the ids: returns what was held back, with U+FFFD for characters that stayed incomplete.
    pub fn finish(&mut self) -> Result<String> {
        let text = self.window_text()?;
        let rest = text.get(self.emitted.len()..).unwrap_or_default().to_string();
        self.window.clear();
        self.context = 0;
        self.emitted.clear();
        Ok(rest)
    }

    /// The window's text; it begins with what is out already.
    fn window_text(&self) -> Result<String> {
        let text = self.tokenizer.decode(&self.window, self.skip_control)?;
        if text.starts_with(&self.emitted) {
            return Ok(text);
        }
        // A run of byte tokens that began well has gone wrong, and the decoder takes all of it back.
        let tail = self.tokenizer.decode(&self.window[self.context..], self.skip_control)?;
        Ok(format!("{}{tail}", self.emitted))
    }
}
