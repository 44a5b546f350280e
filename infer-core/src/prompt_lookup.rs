//! [`Lookup`]: prompt-lookup decoding. Where the end of a text was there before, what followed it then is a guess at what
//! follows now; the model looks at all of the guess at once and keeps as much of it as it would have said itself.
//!
//! The most likely token decides everywhere, so the answer is the one without guessing, as far as kernels for several rows
//! round like those for one: `generation.rs` asks for a guess, `model/session.rs` has it checked.

/// Most tokens of a guess: with the token before them the rows that a kernel for decoding takes.
pub const MOST_GUESSED: usize = 7;

/// Fewest and most tokens at the end of a text that must have been there before.
const FEWEST: usize = 2;
const MOST: usize = 4;
/// Most tokens without a guess after guesses of which nothing was right.
const LONGEST_REST: usize = 32;

/// Guesses, and how they went.
#[derive(Debug, Clone, Default)]
pub struct Lookup {
    /// Tokens for which nothing is guessed.
    rest: usize,
    /// The next such rest.
    next_rest: usize,
}

impl Lookup {
    /// A guess of at most `most` tokens at what follows `text`; empty where there is none.
    pub fn guess<'a>(&mut self, text: &'a [u32], most: usize) -> &'a [u32] {
        if self.rest > 0 {
            self.rest -= 1;
            return &[];
        }
        let at = earlier_end(text).unwrap_or(text.len());
        &text[at..text.len().min(at + most)]
    }

    /// So many of the guessed tokens were right.
    pub fn learn(&mut self, right: usize) {
        self.next_rest = if right > 0 { 0 } else { (2 * self.next_rest).clamp(1, LONGEST_REST) };
        self.rest = self.next_rest;
    }
}

/// Where the text's end was before: behind the longest such place, the last among equals.
fn earlier_end(text: &[u32]) -> Option<usize> {
    let common = |end: usize| {
        let backwards = text[..end].iter().rev().zip(text.iter().rev());
        backwards.take(MOST).take_while(|(a, b)| a == b).count()
    };
    let (len, end) = (1..text.len()).map(|end| (common(end), end)).max()?;
    (len >= FEWEST).then_some(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_followed_before_is_guessed() {
        let guess = |text: &[u32], most| Lookup::default().guess(text, most).to_vec();
        assert_eq!(guess(&[1, 2, 3, 4, 9, 1, 2], 2), [3, 4]);
        // No more than there is; the end may overlap with what it is found in.
        assert_eq!(guess(&[1, 2, 3, 1, 2], 7), [3, 1, 2]);
        assert_eq!(guess(&[5, 5, 5], 7), [5]);
        // The longest, and the last among equals.
        assert_eq!(guess(&[7, 1, 2, 8, 1, 2, 9, 7, 1, 2], 1), [8]);
        assert_eq!(guess(&[1, 2, 8, 1, 2, 9, 1, 2], 1), [9]);
        // One token is no reason.
        for text in [&[1, 2, 1][..], &[], &[1]] {
            assert!(guess(text, 7).is_empty());
        }
    }

    #[test]
    fn wrong_guesses_become_rare() {
        let (text, mut lookup) = ([1, 2, 3, 1, 2], Lookup::default());
        let mut guesses = 0;
        for _ in 0..200 {
            if !lookup.guess(&text, 1).is_empty() {
                guesses += 1;
                lookup.learn(0);
            }
        }
        // After 1, 2, 4, 8, 16, then every 32 tokens.
        assert_eq!(guesses, 6 + (200 - (6 + 31)) / 33);
        lookup.rest = 0;
        assert_eq!(lookup.guess(&text, 1), [3]);
        lookup.learn(1);
        assert_eq!(lookup.guess(&text, 1), [3]);
    }
}
