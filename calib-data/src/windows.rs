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
    /// Encodes `documents` one by one, joins their tokens, [cuts](TokenWindows::cut) them into windows of `seq_len` that
    /// begin with `prefix`, and keeps `samples` of them. Panics if `samples` is 0.
    pub fn new<E: std::fmt::Display>(
        documents: &[impl AsRef<str>],
        mut encode: impl FnMut(&str) -> Result<Vec<u32>, E>,
        prefix: &[u32],
        seq_len: usize,
        samples: usize,
        choice: Choice,
    ) -> Result<TokenWindows> {
        assert!(samples > 0, "TokenWindows: no windows");
        let mut tokens = Vec::new();
        for document in documents {
            let ids = encode(document.as_ref()).map_err(|error| Error::Encode { reason: error.to_string() })?;
            tokens.extend(ids);
        }
        let TokenWindows { tokens: mut windows, .. } = TokenWindows::cut(&tokens, prefix, seq_len)?;
        let available = windows.len() / seq_len;
        if available < samples {
            let (tokens, prefix) = (tokens.len(), prefix.len());
            return Err(Error::TooShort { tokens, samples, seq_len, prefix, available });
        }
        if let Choice::Seeded(seed) = choice {
            let mut order: Vec<usize> = (0..available).collect();
            order.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
            let chosen = &order[..samples];
            windows = chosen.iter().flat_map(|&window| &windows[window * seq_len..][..seq_len]).copied().collect();
        }
        windows.truncate(samples * seq_len);
        Ok(TokenWindows { tokens: windows, seq_len })
    }

    /// Cuts the tokens of a text, in order, into windows that do not overlap. Each window is `prefix`, then the next
    /// `seq_len - prefix.len()` tokens. Where the text itself goes on with `prefix`, this one serves, so that no window
    /// begins with two. An incomplete last window is dropped; there may be none.
    ///
    /// [`perplexity`](crate::perplexity) says which losses of such a window count.
    pub fn cut(tokens: &[u32], prefix: &[u32], seq_len: usize) -> Result<TokenWindows> {
        if seq_len <= prefix.len() {
            return Err(Error::NoRoom { seq_len, prefix: prefix.len() });
        }
        let mut windows = Vec::with_capacity(tokens.len() + tokens.len() / seq_len * prefix.len());
        let mut rest = tokens;
        loop {
            let text = rest.strip_prefix(prefix).unwrap_or(rest);
            let Some((window, left)) = text.split_at_checked(seq_len - prefix.len()) else { break };
            windows.extend(prefix.iter().chain(window));
            rest = left;
        }
        Ok(TokenWindows { tokens: windows, seq_len })
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

    /// Keeps the first `most` windows.
    pub(crate) fn truncate(&mut self, most: usize) {
        self.tokens.truncate(most.saturating_mul(self.seq_len));
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
        let windows = TokenWindows::new(&["0 1", "2 3 4", "5 6 7 8"], encode, &[], 2, 3, Choice::First).unwrap();
        assert_eq!(lists(&windows), [[0, 1], [2, 3], [4, 5]]);
        assert_eq!((windows.len(), windows.seq_len(), windows.is_empty()), (3, 2, false));
        assert_eq!(TokenWindows::from_windows(&lists(&windows)), windows);
        let other = TokenWindows::from_windows(&[vec![7, 7]]);
        assert_eq!(lists(&TokenWindows::joined(&[windows, other])), [[0, 1], [2, 3], [4, 5], [7, 7]]);
    }

    #[test]
    fn a_seed_chooses_without_repetition_and_always_the_same() {
        let text = [numbers(0..1003)];
        let windows = |seed, samples| TokenWindows::new(&text, encode, &[], 10, samples, Choice::Seeded(seed));
        let draw = |seed, samples| lists(&windows(seed, samples).unwrap());
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
        let tokens: Vec<u32> = (0..11).collect();
        assert_eq!(lists(&TokenWindows::cut(&tokens, &[], 5).unwrap()), [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]);
        assert!(TokenWindows::cut(&tokens, &[], 12).unwrap().is_empty());
        assert!(TokenWindows::cut(&[], &[7], 5).unwrap().is_empty());
    }

    #[test]
    fn each_window_begins_with_the_prefix_and_loses_no_text() {
        let cut = |tokens: &[u32], prefix: &[u32], seq_len| lists(&TokenWindows::cut(tokens, prefix, seq_len).unwrap());
        let text: Vec<u32> = (0..10).collect();
        assert_eq!(cut(&text, &[77], 4), [[77, 0, 1, 2], [77, 3, 4, 5], [77, 6, 7, 8]]);
        assert_eq!(
            cut(&text, &[77, 78], 4),
            [[77, 78, 0, 1], [77, 78, 2, 3], [77, 78, 4, 5], [77, 78, 6, 7], [77, 78, 8, 9]]
        );
        // A prefix that the text has already is not doubled; one in the middle of a window is text.
        assert_eq!(cut(&[77, 0, 1, 77, 2, 77, 3, 4, 5], &[77], 3), [[77, 0, 1], [77, 2, 77], [77, 3, 4]]);
        let error = TokenWindows::cut(&text, &[77, 78], 2).unwrap_err();
        assert_eq!(error.to_string(), "a window of 2 tokens has no room for text behind a prefix of 2 tokens");

        // The same of documents, chosen by a seed: every window is one of those.
        let documents = [numbers(0..500), numbers(500..1000)];
        let draw = |samples, choice| TokenWindows::new(&documents, encode, &[7777], 10, samples, choice);
        let (all, mut drawn) =
            (lists(&draw(111, Choice::First).unwrap()), lists(&draw(111, Choice::Seeded(3)).unwrap()));
        assert_eq!((&all[55][..2], all.len()), (&[7777, 495][..], 111));
        assert_ne!(all, drawn);
        drawn.sort();
        assert_eq!(all, drawn);
        let error = draw(112, Choice::First).unwrap_err();
        assert_eq!(error.to_string(), "the text has 1000 tokens, but 112 windows of 10, 9 of them text, need 1008");
        assert_eq!(error.hint().unwrap(), "give a longer text, or ask for at most 111 windows of 10 tokens");
    }

    #[test]
    fn a_short_text_is_refused_with_what_would_do() {
        let refuse = |seq_len, samples| {
            let error = TokenWindows::new(&[numbers(0..25)], encode, &[], seq_len, samples, Choice::First).unwrap_err();
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
        let error = TokenWindows::new(&["1 x"], encode, &[], 1, 1, Choice::First).unwrap_err();
        assert!(error.to_string().starts_with("the text does not encode: "), "{error}");
    }
}
