//! [`KvCache`]: the keys and values of one sequence in every layer, and the tokens they belong to.

use model_format::DecoderConfig;

use crate::{
    Result,
    ops::{KvShape, Ops, Span},
};

/// The keys and values of one sequence in every layer, and the tokens they belong to.
///
/// The cache remembers its tokens, so that a new turn keeps the common beginning: what lies beyond
/// [`KvCache::len`] on the device is garbage and is written over.
pub struct KvCache<O: Ops> {
    layers: Vec<O::Kv>,
    tokens: Vec<u32>,
    /// Tokens that layers hold beyond these, not known yet.
    expected: usize,
    capacity: usize,
    /// Whether keys are rotated as those of a long text, where that is not all the same.
    is_long: bool,
    /// Tokens that the text is known to have in the end.
    text_len: usize,
}

/// A place in a [`KvCache`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mark {
    len: usize,
    is_long: bool,
}

impl<O: Ops> KvCache<O> {
    /// An empty cache with room for `capacity` tokens.
    pub fn new(ops: &mut O, config: &DecoderConfig, capacity: usize) -> Result<KvCache<O>> {
        let shape = KvShape { kv_heads: config.num_key_value_heads, capacity, head_dim: config.head_dim };
        let layers = (0..config.num_hidden_layers).map(|_| ops.new_kv(shape)).collect::<Result<_>>()?;
        Ok(KvCache { layers, tokens: Vec::new(), expected: 0, capacity, is_long: false, text_len: 0 })
    }

    /// Tokens there is room for.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Tokens held.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether no token is held.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// The tokens held.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Forgets all but the first `len` tokens.
    pub fn truncate(&mut self, len: usize) {
        self.forget_expected();
        self.tokens.truncate(len);
        self.text_len = 0;
    }

    /// Where it is, for [`KvCache::go_back`].
    pub(crate) fn mark(&self) -> Mark {
        Mark { len: self.tokens.len(), is_long: self.is_long }
    }

    /// Forgets what came since; the text is as long in the end as it was to be.
    pub(crate) fn go_back(&mut self, Mark { len, is_long }: Mark) {
        self.forget_expected();
        self.tokens.truncate(len);
        // Where keys were rotated anew for a text that became long, those before the mark are so again.
        self.is_long = is_long;
    }

    /// Forgets tokens that are not known yet.
    pub(crate) fn forget_expected(&mut self) {
        self.expected = 0;
    }

    /// How many tokens at the beginning of `tokens` the cache holds already.
    pub fn common_prefix(&self, tokens: &[u32]) -> usize {
        self.tokens.iter().zip(tokens).take_while(|(a, b)| a == b).count()
    }

    /// Forgets everything; a text of `len` tokens comes, perhaps in parts. Where long texts are rotated in a way of their
    /// own, its first part is rotated as its last.
    pub fn begin_text(&mut self, len: usize) {
        self.truncate(0);
        self.text_len = len;
    }

    /// The length of the text when `more` tokens have come, as far as it is known.
    pub(crate) fn text_len(&self, more: usize) -> usize {
        self.text_len.max(self.tokens.len() + more)
    }

    /// Whether keys are rotated as those of a long text.
    pub(crate) fn is_long(&self) -> bool {
        self.is_long
    }

    /// Empties the cache, for keys that are rotated so; returns what it held.
    pub(crate) fn restart(&mut self, is_long: bool) -> Vec<u32> {
        assert_eq!(self.expected, 0, "kv cache: tokens are still on their way");
        self.is_long = is_long;
        std::mem::take(&mut self.tokens)
    }

    /// Room in layer `i` for the sequence's next `rows` tokens. Panics when there is not enough.
    pub(crate) fn span(&mut self, i: usize, rows: usize) -> Span<'_, O::Kv> {
        let past_len = self.tokens.len() + self.expected;
        assert!(past_len + rows <= self.capacity, "kv cache: {past_len} + {rows} tokens in room for {}", self.capacity);
        Span { rows, past_len, kv: &mut self.layers[i] }
    }

    /// Notes that every layer now holds `tokens` too.
    pub(crate) fn extend(&mut self, tokens: &[u32]) {
        assert_eq!(self.expected, 0, "kv cache: tokens behind one that is not known");
        self.tokens.extend_from_slice(tokens);
    }

    /// Notes that every layer now holds one more token, which is not known yet.
    pub(crate) fn expect(&mut self) {
        self.expected += 1;
    }

    /// Which token the first of those was.
    pub(crate) fn arrived(&mut self, token: u32) {
        self.expected -= 1;
        self.tokens.push(token);
    }

    /// Tokens there is room for still.
    pub(crate) fn room(&self) -> usize {
        self.capacity - self.tokens.len() - self.expected
    }
}
