//! [`TextRuns`]: detects overlap between calibration text and evaluation text.
//!
//! Perplexity on text that was also used for calibration does not measure the model.

use std::collections::HashMap;

use crate::TokenWindows;

/// Length of a shared run, in tokens, that counts as an overlap. Longer than most boilerplate, which unrelated texts
/// share.
pub const OVERLAP_TOKENS: usize = 64;

/// The base of the rolling hash: any large odd number.
const BASE: u64 = 0x9e37_79b9_7f4a_7c15;

/// An index of all runs of [`OVERLAP_TOKENS`] consecutive tokens in a text.
pub struct TextRuns {
    tokens: Vec<u32>,
    len: usize,
    /// Hash of a run -> the first position of a run with this hash.
    runs: HashMap<u64, usize>,
}

impl TextRuns {
    /// Indexes a text. `seq_len` is the length of the windows to compare with, without their prefix. Shorter windows
    /// shorten the runs: a run has `min(OVERLAP_TOKENS, seq_len)` tokens.
    pub fn new(tokens: Vec<u32>, seq_len: usize) -> TextRuns {
        let len = OVERLAP_TOKENS.min(seq_len);
        let mut runs = HashMap::new();
        hashes(&tokens, len, |at, hash| {
            runs.entry(hash).or_insert(at);
            false
        });
        TextRuns { tokens, len, runs }
    }

    /// Index of the first window that shares a run with the text.
    pub fn first_shared(&self, windows: &TokenWindows) -> Option<usize> {
        windows.iter().position(|window| {
            let mut found = false;
            hashes(window, self.len, |at, hash| {
                let same = |&start: &usize| self.tokens[start..][..self.len] == window[at..][..self.len];
                found = self.runs.get(&hash).is_some_and(same);
                found
            });
            found
        })
    }
}

/// Calls `visit` with the start and the rolling hash of each run of `len` tokens, until it returns true.
fn hashes(tokens: &[u32], len: usize, mut visit: impl FnMut(usize, u64) -> bool) {
    if tokens.len() < len {
        return;
    }
    // hash = sum of value(token) * BASE^(distance from the run's end), modulo 2^64.
    let value = |token: u32| (u64::from(token) + 1).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let highest = (1..len).fold(1u64, |power, _| power.wrapping_mul(BASE));
    let mut hash = tokens[..len].iter().fold(0u64, |hash, &token| hash.wrapping_mul(BASE).wrapping_add(value(token)));
    for at in 0.. {
        if visit(at, hash) || at + len == tokens.len() {
            return;
        }
        let rest = hash.wrapping_sub(value(tokens[at]).wrapping_mul(highest));
        hash = rest.wrapping_mul(BASE).wrapping_add(value(tokens[at + len]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn windows(tokens: impl IntoIterator<Item = u32>, seq_len: usize) -> TokenWindows {
        let tokens: Vec<u32> = tokens.into_iter().collect();
        TokenWindows::from_windows(&tokens.chunks_exact(seq_len).map(<[u32]>::to_vec).collect::<Vec<_>>())
    }

    #[test]
    fn a_shared_run_is_found_at_any_offset() {
        let text: Vec<u32> = (0..5000).map(|i| i * 7919 % 1013 + i / 1013 * 2000).collect();
        let runs = TextRuns::new(text.clone(), 200);
        // Window 2 contains OVERLAP_TOKENS tokens of the text, window 1 one less.
        for (at, offset) in [(0, 0), (4000, 17), (5000 - OVERLAP_TOKENS, 200 - OVERLAP_TOKENS)] {
            let mut calibration: Vec<u32> = (0..1000).map(|i| 100_000 + i % 50).collect();
            calibration[200 + 5..][..OVERLAP_TOKENS - 1].copy_from_slice(&text[at..][..OVERLAP_TOKENS - 1]);
            assert_eq!(runs.first_shared(&windows(calibration.clone(), 200)), None, "{at}");
            calibration[400 + offset..][..OVERLAP_TOKENS].copy_from_slice(&text[at..][..OVERLAP_TOKENS]);
            assert_eq!(runs.first_shared(&windows(calibration, 200)), Some(2), "{at}");
        }
        // The same tokens in reverse order are another run.
        let reversed = text.iter().rev().copied();
        assert_eq!(runs.first_shared(&windows(reversed, 200)), None);
    }

    #[test]
    fn short_windows_and_short_texts() {
        let runs = TextRuns::new((0..100).collect(), 10);
        assert_eq!(runs.first_shared(&windows(90..100, 10)), Some(0));
        assert_eq!(runs.first_shared(&windows((90..99).chain([5]), 10)), None);
        assert_eq!(TextRuns::new(vec![1, 2, 3], 10).first_shared(&windows(0..10, 10)), None);
    }
}
