//! [`Lookup`]: prompt-lookup decoding, a form of speculative decoding without a draft model.
//!
//! If the last tokens of a text occurred before, the tokens that followed them then are a guess of the continuation. The model
//! runs the whole guess in one pass, and chooses or draws a token after each row, each with the random number that it would have
//! alone. The guessed tokens that equal the chosen ones are kept, with the token after them. So answers stay the same, except
//! where kernels for several rows round differently from kernels for one row.
//!
//! `answer/batch.rs` asks for guesses and checks them. During a pause the device runs ahead of the host instead.

/// Limit of the tokens of a guess. Together with the token before it, they fill the rows of a decoding kernel.
pub const MOST_GUESSED: usize = 7;

/// Number of last tokens that must have occurred before.
const MIN_MATCH: usize = 2;
/// Number of last tokens that are compared.
const MAX_MATCH: usize = 4;
/// Limit of the pause after wrong guesses, in tokens.
const MAX_PAUSE: usize = 32;
/// Pause after a text without a match, in tokens.
const NO_MATCH_PAUSE: usize = 4;

/// Guesses continuations. Pauses after wrong guesses.
#[derive(Debug, Clone, Default)]
pub struct Lookup {
    /// Number of tokens left in the current pause.
    pause: usize,
    /// Length of the last pause.
    last_pause: usize,
}

impl Lookup {
    /// A guess of the continuation of `text`, of at most `most` tokens. Empty during a pause, and without a match, which begins a
    /// short pause.
    pub fn guess<'a>(&mut self, text: &'a [u32], most: usize) -> &'a [u32] {
        if self.pause > 0 {
            return &[];
        }
        let Some(at) = earlier_match(text) else {
            self.pause = NO_MATCH_PAUSE;
            return &[];
        };
        &text[at..text.len().min(at + most)]
    }

    /// Tokens left in the current pause.
    pub fn pause(&self) -> usize {
        self.pause
    }

    /// Reports a token without a guess.
    pub fn pass(&mut self) {
        self.pause = self.pause.saturating_sub(1);
    }

    /// Reports that `right` tokens of the last guess were right.
    pub fn learn(&mut self, right: usize) {
        self.last_pause = if right > 0 { 0 } else { (2 * self.last_pause).clamp(1, MAX_PAUSE) };
        self.pause = self.last_pause;
    }
}

/// The end of the best earlier match of the last tokens of `text`: the longest one, the last among equals.
fn earlier_match(text: &[u32]) -> Option<usize> {
    let common = |end: usize| {
        let backwards = text[..end].iter().rev().zip(text.iter().rev());
        backwards.take(MAX_MATCH).take_while(|(a, b)| a == b).count()
    };
    let (len, end) = (1..text.len()).map(|end| (common(end), end)).max()?;
    (len >= MIN_MATCH).then_some(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guesses_the_tokens_after_the_best_match() {
        let guess = |text: &[u32], most| Lookup::default().guess(text, most).to_vec();
        assert_eq!(guess(&[1, 2, 3, 4, 9, 1, 2], 2), [3, 4]);
        // A guess ends at the end of the text, and may overlap the match.
        assert_eq!(guess(&[1, 2, 3, 1, 2], 7), [3, 1, 2]);
        assert_eq!(guess(&[5, 5, 5], 7), [5]);
        // The longest match wins; among equals, the last one.
        assert_eq!(guess(&[7, 1, 2, 8, 1, 2, 9, 7, 1, 2], 1), [8]);
        assert_eq!(guess(&[1, 2, 8, 1, 2, 9, 1, 2], 1), [9]);
        // A match of one token is too short.
        for text in [&[1, 2, 1][..], &[], &[1]] {
            assert!(guess(text, 7).is_empty());
        }
    }

    #[test]
    fn wrong_guesses_lengthen_the_pause() {
        let (text, mut lookup) = ([1, 2, 3, 1, 2], Lookup::default());
        let mut guesses = 0;
        for _ in 0..200 {
            if lookup.guess(&text, 1).is_empty() {
                lookup.pass();
            } else {
                guesses += 1;
                lookup.learn(0);
            }
        }
        // Pauses of 1, 2, 4, 8, 16, then always 32 tokens.
        assert_eq!(guesses, 6 + (200 - (6 + 31)) / 33);
        lookup.pause = 0;
        assert_eq!(lookup.guess(&text, 1), [3]);
        lookup.learn(1);
        assert_eq!(lookup.guess(&text, 1), [3]);
    }
}
