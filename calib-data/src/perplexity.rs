//! The protocol by which perplexities are compared, and a short text to apply it to where no data set is at hand.

/// A short English text, written for this project and under its licences.
pub const SHORT_TEXT: &str = include_str!("short_text.txt");

/// The text of a raw WikiText file as GPTQ's authors join it: rows (a row is its line with its newline, or nothing where
/// the line is blank) joined with two newlines.
pub fn wikitext_text(raw: &str) -> String {
    let _ = raw;
    todo!()
}

/// Perplexity from the mean next-token loss (natural logarithm) of each window: `exp` of their mean.
///
/// Windows are [`TokenWindows`](crate::TokenWindows) with [`Choice::First`](crate::Choice::First); each is run alone, with
/// no start token, and its loss is the mean over its `seq_len - 1` predictions.
pub fn perplexity(window_losses: &[f64]) -> f64 {
    let _ = window_losses;
    todo!()
}
