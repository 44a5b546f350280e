//! [`TokenWindows`]: `n_samples` windows of `seq_len` tokens.

use crate::Result;

/// Which windows of a text are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// The first ones, in order.
    First,
    /// Any, without repetition, in the order of this seed.
    Seeded(u64),
}

/// Full windows of tokens, all of one length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenWindows {
    tokens: Vec<u32>,
    seq_len: usize,
}

impl TokenWindows {
    /// Encodes `documents` one by one, joins their tokens, cuts them into windows of `seq_len` that do not overlap, and
    /// keeps `samples` of them. What remains at the end is dropped. Panics if `seq_len` or `samples` is 0.
    pub fn new<E: std::fmt::Display>(
        documents: &[impl AsRef<str>],
        encode: impl FnMut(&str) -> Result<Vec<u32>, E>,
        seq_len: usize,
        samples: usize,
        choice: Choice,
    ) -> Result<TokenWindows> {
        let _ = (documents, encode, samples, choice, seq_len);
        todo!()
    }

    /// Windows that are there already, such as texts that the model itself wrote. Panics if their lengths differ.
    pub fn from_windows(windows: Vec<Vec<u32>>) -> TokenWindows {
        let _ = windows;
        todo!()
    }

    /// Number of windows.
    pub fn len(&self) -> usize {
        self.tokens.len() / self.seq_len
    }

    /// Whether there is no window.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Tokens per window.
    pub fn seq_len(&self) -> usize {
        self.seq_len
    }

    /// The windows, `seq_len` tokens each.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[u32]> {
        self.tokens.chunks_exact(self.seq_len)
    }
}
