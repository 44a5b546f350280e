//! The perplexity protocol, and a short text to measure on without a data set.
//!
//! The text's tokens are cut into non-overlapping windows ([`TokenWindows::cut`](crate::TokenWindows::cut)). Each
//! window is a separate sequence for the model. A window has N tokens and comes in two kinds:
//!
//! - **Without a prefix token**: N tokens of text. The losses of the last N - 1 count. This is the protocol of GPTQ's
//!   authors, with N = 2048 (`datautils.py` and `opt.py` of IST-DASLab/gptq). One difference: their tokenizer may add
//!   BOS once, before the whole text, so their first window may start with BOS. Ours never does.
//! - **With prefix tokens**: the P tokens that the model's tokenizer adds before a text (BOS: P = 1), then N - P tokens
//!   of text. The losses of all text tokens count; the first one is predicted from the prefix. Every token of the text
//!   therefore counts once. With P = 1 a window has N - 1 losses, as in the first kind.
//!
//! Results of other programs are not comparable. llama.cpp's perplexity tool (`tools/perplexity/perplexity.cpp`)
//! overwrites the first token of each window with BOS if the vocabulary requires BOS, which drops that token of the
//! text. It counts only the second half of a window. EleutherAI's lm-evaluation-harness (`get_rolling_token_windows` in
//! `lm_eval/utils.py`) adds the prefix to the first window of a document only; each later window begins with the last
//! token of the previous one.

use crate::{Result, TokenWindows};

/// A short English text (about 700 words) on keeping a lighthouse. Written for this project, under its licenses: no
/// earlier model has it in its training data.
pub const SHORT_TEXT: &str = include_str!("short_text.txt");

/// Joins the lines of a raw WikiText file as GPTQ's authors do (`datautils.py` of IST-DASLab/gptq): the rows of the
/// data set are joined with two newlines. A row is a line with its newline, or the empty string for a blank line.
pub fn wikitext_text(raw: &str) -> String {
    // The last newline ends the last line and starts no new one.
    let lines = raw.strip_suffix('\n').unwrap_or(raw);
    let mut text = String::with_capacity(raw.len() * 2);
    for (index, line) in lines.split('\n').enumerate() {
        if index > 0 {
            text.push_str("\n\n");
        }
        if !line.trim().is_empty() {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

/// Cuts a text into at most `max_windows` windows of `seq_len` tokens. Each window begins with `prefix`, whose tokens
/// are included in `seq_len`. A text that does not fill one window gives a single shorter window. `None` if the text is
/// too short for a single loss.
///
/// # Errors
///
/// [`Error::NoRoom`](crate::Error::NoRoom) if the prefix fills a window.
pub fn windows(tokens: &[u32], prefix: &[u32], seq_len: usize, max_windows: usize) -> Result<Option<TokenWindows>> {
    let text = tokens.strip_prefix(prefix).unwrap_or(tokens);
    // Without a prefix, the first token has no loss.
    if text.len() < if prefix.is_empty() { 2 } else { 1 } {
        return Ok(None);
    }
    let mut windows = TokenWindows::cut(tokens, prefix, seq_len.min(prefix.len() + text.len()))?;
    windows.truncate(max_windows);
    Ok(Some(windows))
}

/// Describes the start of each window for a report. `prefix_tokens` are the prefix tokens as text, for example `<s>`.
pub fn describe_prefix(prefix_tokens: &[String]) -> String {
    match prefix_tokens.concat() {
        none if none.is_empty() => "without a prefix token".into(),
        tokens => format!("each beginning with `{}`", tokens.escape_debug()),
    }
}

/// Index of the first loss that counts in a window. A window of N tokens has N - 1 losses; loss `i` belongs to token
/// `i + 1`. Losses of prefix tokens do not count.
pub fn first_loss(prefix_len: usize) -> usize {
    prefix_len.saturating_sub(1)
}

/// Perplexity: `exp` of the mean of `window_losses`. NaN without windows.
///
/// Each element is one window's mean next-token loss in nats, averaged over the losses from [`first_loss`] on.
pub fn perplexity(window_losses: &[f64]) -> f64 {
    (window_losses.iter().sum::<f64>() / window_losses.len() as f64).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wikitext_rows_are_joined_with_two_newlines() {
        assert_eq!(
            wikitext_text(" \n = Title = \n \n One line . \nNext .\n"),
            "\n\n = Title = \n\n\n\n\n One line . \n\n\nNext .\n"
        );
        assert_eq!(wikitext_text("one"), "one\n");
        assert_eq!(wikitext_text(""), "");
    }

    #[test]
    fn perplexity_is_the_exponential_of_the_mean() {
        assert!((perplexity(&[2.0, 4.0]) - 3f64.exp()).abs() < 1e-12);
        assert_eq!(perplexity(&[0.0]), 1.0);
        assert!(perplexity(&[]).is_nan());
    }

    #[test]
    fn a_short_text_is_one_window() {
        let lists = |tokens: &[u32], prefix: &[u32], seq_len, max_windows| {
            let windows = windows(tokens, prefix, seq_len, max_windows).unwrap();
            windows.map(|windows| windows.iter().map(<[u32]>::to_vec).collect::<Vec<_>>())
        };
        assert_eq!(lists(&[1, 2, 3, 4, 5], &[], 2, 9), Some(vec![vec![1, 2], vec![3, 4]]));
        assert_eq!(lists(&[1, 2, 3, 4, 5], &[7], 2, 3), Some(vec![vec![7, 1], vec![7, 2], vec![7, 3]]));
        assert_eq!(lists(&[1, 2, 3], &[], 9, 9), Some(vec![vec![1, 2, 3]]));
        assert_eq!(lists(&[1, 2, 3], &[7], 9, 9), Some(vec![vec![7, 1, 2, 3]]));
        assert_eq!(lists(&[7, 1], &[7], 9, 9), Some(vec![vec![7, 1]]));
        for (tokens, prefix) in [(&[][..], &[][..]), (&[1], &[]), (&[], &[7]), (&[7], &[7]), (&[7, 8], &[7, 8])] {
            assert_eq!(lists(tokens, prefix, 9, 9), None, "{tokens:?} after {prefix:?}");
        }
        assert!(windows(&[1, 2, 3], &[7, 8], 2, 9).is_err());
    }

    #[test]
    fn losses_of_prefix_tokens_do_not_count() {
        // A window of 5 tokens has losses for tokens 1 to 4. The text begins at token 0, 1, 2.
        assert_eq!([0, 1, 2].map(first_loss), [0, 0, 1]);
    }

    #[test]
    fn the_short_text_is_plain_prose() {
        assert!((2500..6000).contains(&SHORT_TEXT.len()), "{}", SHORT_TEXT.len());
        assert!(SHORT_TEXT.is_ascii() && SHORT_TEXT.ends_with(".\n"));
    }
}
