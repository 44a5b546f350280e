//! [`KvCache`]: the pages of one sequence in a [`KvPool`](super::KvPool), and its tokens.

use crate::ops::{PAGE, RowSpan};

/// The pages of one sequence in a [`KvPool`](super::KvPool), and its tokens.
///
/// The cache remembers its tokens, so that a new turn reuses the common prefix. Device memory beyond [`KvCache::len`] is
/// undefined and will be overwritten.
pub struct KvCache {
    pages: Vec<u32>,
    tokens: Vec<u32>,
    /// Number of tokens in the layers after `tokens` whose ids the host does not know yet.
    pending: usize,
    capacity: usize,
    /// True if the keys have the rotary frequencies of long texts. Matters only for models that have such.
    is_long: bool,
    /// Announced length of the whole text; 0 if unknown.
    text_len: usize,
}

/// A state of a [`KvCache`] to return to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mark {
    len: usize,
    is_long: bool,
}

impl KvCache {
    /// An empty cache on these pages of a pool. No other cache may have them.
    pub fn new(pages: Vec<u32>, capacity: usize) -> KvCache {
        assert!(capacity <= pages.len() * PAGE, "kv cache: {capacity} tokens on {} pages", pages.len());
        KvCache { pages, tokens: Vec::new(), pending: 0, capacity, is_long: false, text_len: 0 }
    }

    /// Capacity in tokens.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Number of tokens in the cache.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// True if the cache has no token.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// The tokens in the cache.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Drops all but the first `len` tokens.
    pub fn truncate(&mut self, len: usize) {
        self.drop_pending();
        self.tokens.truncate(len);
        self.text_len = 0;
    }

    /// The current state, for [`KvCache::rewind`].
    pub(crate) fn mark(&self) -> Mark {
        Mark { len: self.tokens.len(), is_long: self.is_long }
    }

    /// Drops the tokens added since `mark`. Keeps the announced length of the text.
    pub(crate) fn rewind(&mut self, Mark { len, is_long }: Mark) {
        self.drop_pending();
        self.tokens.truncate(len);
        // If the text became long since the mark, all keys were computed again. Another run computes them once more.
        self.is_long = is_long;
    }

    /// Drops the tokens whose ids are not known yet.
    pub(crate) fn drop_pending(&mut self) {
        self.pending = 0;
    }

    /// Number of leading tokens that the cache shares with `tokens`.
    pub fn common_prefix(&self, tokens: &[u32]) -> usize {
        self.tokens.iter().zip(tokens).take_while(|(a, b)| a == b).count()
    }

    /// Empties the cache for a text of `len` tokens that may come in chunks. Models with other rotary frequencies for long
    /// texts then use them from the first chunk on.
    pub fn begin_text(&mut self, len: usize) {
        self.truncate(0);
        self.text_len = len;
    }

    /// The length of the text after `more` tokens, or its announced length if that is greater.
    pub(crate) fn text_len(&self, more: usize) -> usize {
        self.text_len.max(self.tokens.len() + more)
    }

    /// True if the keys have the rotary frequencies of long texts.
    pub(crate) fn is_long(&self) -> bool {
        self.is_long
    }

    /// Empties the cache, for keys with the frequencies of long or of short texts. Returns the tokens it had.
    pub(crate) fn restart(&mut self, is_long: bool) -> Vec<u32> {
        assert_eq!(self.pending, 0, "kv cache: restart with pending tokens");
        self.is_long = is_long;
        std::mem::take(&mut self.tokens)
    }

    /// The place of the sequence's next `rows` tokens. Panics if they exceed the capacity.
    pub(crate) fn span(&self, rows: usize) -> RowSpan<'_> {
        RowSpan { rows, past_len: self.place(rows), pages: &self.pages }
    }

    /// The position of the first of the next `rows` tokens. Panics if they exceed the capacity.
    pub(crate) fn place(&self, rows: usize) -> usize {
        let past_len = self.tokens.len() + self.pending;
        assert!(past_len + rows <= self.capacity, "kv cache: {past_len} + {rows} tokens, capacity {}", self.capacity);
        past_len
    }

    /// Its pages in the pool.
    pub(crate) fn pages(&self) -> &[u32] {
        &self.pages
    }

    /// Records that every layer now also has `tokens`.
    pub(crate) fn extend(&mut self, tokens: &[u32]) {
        assert_eq!(self.pending, 0, "kv cache: tokens after a pending one");
        self.tokens.extend_from_slice(tokens);
    }

    /// Records that every layer now has one more token, whose id is not known yet.
    pub(crate) fn reserve(&mut self) {
        self.pending += 1;
    }

    /// Records the id of the first pending token.
    pub(crate) fn resolve(&mut self, token: u32) {
        self.pending -= 1;
        self.tokens.push(token);
    }

    /// Number of tokens that still fit.
    pub(crate) fn room(&self) -> usize {
        self.capacity - self.tokens.len() - self.pending
    }
}
