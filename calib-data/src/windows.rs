//! [`TokenWindows`]: `samples` windows of `seq_len` tokens.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::{Error, Result};

/// Which windows of a text are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// The first ones, in order.
    First,
    /// Any, without repetition, as this seed has it.
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
        mut encode: impl FnMut(&str) -> Result<Vec<u32>, E>,
        seq_len: usize,
        samples: usize,
        choice: Choice,
    ) -> Result<TokenWindows> {
        assert!(seq_len > 0 && samples > 0, "TokenWindows: {samples} windows of {seq_len} tokens");
        let mut tokens = Vec::new();
        for document in documents {
            let ids = encode(document.as_ref()).map_err(|error| Error::Encode { reason: error.to_string() })?;
            tokens.extend(ids);
        }
        let available = tokens.len() / seq_len;
        if available < samples {
            return Err(Error::TooShort { tokens: tokens.len(), samples, seq_len });
        }
        if let Choice::Seeded(seed) = choice {
            let mut order: Vec<usize> = (0..available).collect();
            order.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
            let chosen = &order[..samples];
            tokens = chosen.iter().flat_map(|&window| &tokens[window * seq_len..][..seq_len]).copied().collect();
        }
        tokens.truncate(samples * seq_len);
        Ok(TokenWindows { tokens, seq_len })
    }

    /// All full windows of a text, in order: what a perplexity is measured on.
    pub fn all<E: std::fmt::Display>(
        text: &str,
        mut encode: impl FnMut(&str) -> Result<Vec<u32>, E>,
        seq_len: usize,
    ) -> Result<TokenWindows> {
        assert!(seq_len > 0, "TokenWindows: windows of no tokens");
        let mut tokens = encode(text).map_err(|error| Error::Encode { reason: error.to_string() })?;
        if tokens.len() < seq_len {
            return Err(Error::TooShort { tokens: tokens.len(), samples: 1, seq_len });
        }
        tokens.truncate(tokens.len() / seq_len * seq_len);
        Ok(TokenWindows { tokens, seq_len })
    }

    /// Windows that are there already, such as texts that the model itself wrote. Panics if there is none, or if their
    /// lengths differ.
    pub fn from_windows(windows: &[Vec<u32>]) -> TokenWindows {
        let seq_len = windows.first().map_or(0, Vec::len);
        assert!(seq_len > 0, "TokenWindows: no tokens");
        assert!(windows.iter().all(|window| window.len() == seq_len), "TokenWindows: windows of different lengths");
        TokenWindows { tokens: windows.concat(), seq_len }
    }

    /// The windows of several sources, one after the other. Panics if there is none, or if their lengths differ.
    pub fn joined(parts: &[TokenWindows]) -> TokenWindows {
        let seq_len = parts.first().expect("TokenWindows: nothing to join").seq_len;
        assert!(parts.iter().all(|part| part.seq_len == seq_len), "TokenWindows: windows of different lengths");
        TokenWindows { tokens: parts.iter().flat_map(|part| &part.tokens).copied().collect(), seq_len }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// `a b c` as 1 2 3: each word is a number.
    fn encode(text: &str) -> Result<Vec<u32>, std::num::ParseIntError> {
        text.split_whitespace().map(str::parse).collect()
    }

    fn numbers(range: std::ops::Range<u32>) -> String {
        range.map(|n| n.to_string()).collect::<Vec<_>>().join(" ")
    }

    fn lists(windows: &TokenWindows) -> Vec<Vec<u32>> {
        windows.iter().map(<[u32]>::to_vec).collect()
    }

    #[test]
    fn the_first_windows_are_packed_across_documents() {
        let windows = TokenWindows::new(&["0 1", "2 3 4", "5 6 7 8"], encode, 2, 3, Choice::First).unwrap();
        assert_eq!(lists(&windows), [[0, 1], [2, 3], [4, 5]]);
        assert_eq!((windows.len(), windows.seq_len(), windows.is_empty()), (3, 2, false));
        assert_eq!(TokenWindows::from_windows(&lists(&windows)), windows);
        let other = TokenWindows::from_windows(&[vec![7, 7]]);
        assert_eq!(lists(&TokenWindows::joined(&[windows, other])), [[0, 1], [2, 3], [4, 5], [7, 7]]);
    }

    #[test]
    fn a_seed_chooses_without_repetition_and_always_the_same() {
        let text = [numbers(0..1003)];
        let draw = |seed, samples| lists(&TokenWindows::new(&text, encode, 10, samples, Choice::Seeded(seed)).unwrap());
        assert_eq!(draw(1, 20), draw(1, 20));
        assert_ne!(draw(1, 20), draw(2, 20));
        // More samples of a seed begin with the fewer.
        assert_eq!(draw(1, 20)[..5], draw(1, 5));
        let mut all = draw(3, 100);
        all.sort();
        assert_eq!(all.concat(), (0..1000).collect::<Vec<_>>());
    }

    #[test]
    fn all_windows_of_a_text() {
        let windows = TokenWindows::all(&numbers(0..11), encode, 5).unwrap();
        assert_eq!(lists(&windows), [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]);
    }

    #[test]
    fn a_short_text_is_refused_with_what_would_do() {
        let refuse = |seq_len, samples| {
            let error = TokenWindows::new(&[numbers(0..25)], encode, seq_len, samples, Choice::First).unwrap_err();
            (error.to_string(), error.hint().unwrap())
        };
        assert_eq!(
            refuse(10, 3),
            (
                "the text has 25 tokens, but 3 windows of 10 need 30".into(),
                "give a longer text, or ask for at most 2 windows of 10 tokens".into()
            )
        );
        assert_eq!(refuse(30, 1).1, "give a longer text, or windows of at most 25 tokens");
        assert!(TokenWindows::all("1 2", encode, 3).is_err());
        let error = TokenWindows::new(&["1 x"], encode, 1, 1, Choice::First).unwrap_err();
        assert!(error.to_string().starts_with("the text does not encode: "), "{error}");
    }
}
