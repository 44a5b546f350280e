//! The protocol by which perplexities are compared, and a short text to apply it to where no data set is at hand.
//!
//! The text's tokens are cut into windows that do not overlap ([`TokenWindows::cut`](crate::TokenWindows::cut)), and each
//! window is run alone. A window of N tokens is one of two kinds:
//!
//! - **Without a prefix token**: N tokens of the text; the losses of the last N - 1 count. GPTQ's authors measure so, with
//!   N = 2048 (`datautils.py` and `opt.py` of IST-DASLab/gptq). Their script lets the tokenizer put BOS before the whole text
//!   once, so that their first window has one where the tokenizer adds it; here no window has.
//! - **With the prefix tokens** that the model's tokenizer puts before a text, P of them (BOS: P = 1): these, then N - P
//!   tokens of the text, whose losses all count: the first one's too, which is predicted from the prefix. So every token
//!   of the text counts once, and with P = 1 a window has N - 1 losses in either kind.
//!
//! Other programs differ. llama.cpp's perplexity tool (`tools/perplexity/perplexity.cpp`) overwrites the first token of
//! each window with BOS where the vocabulary asks for one, so that this token of the text is lost, and counts the second half of
//! a window alone. EleutherAI's lm-evaluation-harness (`get_rolling_token_windows` in `lm_eval/utils.py`) puts the prefix
//! before the first window of a document only; each later window begins with the last token of the one before.
//! Figures of those are no figures of this protocol.

use crate::{Result, TokenWindows};

/// A short English text (about 700 words) on how a lighthouse is kept. Written for this project and under its licences,
/// so no model has seen it in training.
pub const SHORT_TEXT: &str = include_str!("short_text.txt");

/// The text of a raw WikiText file as GPTQ's authors join it: rows joined with two newlines, where a row is a line with
/// its newline, or nothing if the line is blank.
pub fn wikitext_text(raw: &str) -> String {
    // A newline ends the last line; what follows it is no line.
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

/// The windows of a text to measure on: the first `most` of `seq_len` tokens, each beginning with `prefix`. A text that does
/// not fill a window is one window of its own length; `None` if it is too short for a single loss.
pub fn windows(tokens: &[u32], prefix: &[u32], seq_len: usize, most: usize) -> Result<Option<TokenWindows>> {
    let text = tokens.strip_prefix(prefix).unwrap_or(tokens);
    // Without a prefix nothing predicts the first token.
    if text.len() < if prefix.is_empty() { 2 } else { 1 } {
        return Ok(None);
    }
    let mut windows = TokenWindows::cut(tokens, prefix, seq_len.min(prefix.len() + text.len()))?;
    windows.truncate(most);
    Ok(Some(windows))
}

/// In words, what each window begins with: the prefix tokens as the tokenizer writes them.
pub fn beginning(prefix_tokens: &[String]) -> String {
    match prefix_tokens.concat() {
        none if none.is_empty() => "without a prefix token".into(),
        tokens => format!("each beginning with `{}`", tokens.escape_debug()),
    }
}

/// The first loss of a window that counts. A window of N tokens has N - 1 losses, the first of them the second token's;
/// those of prefix tokens do not count.
pub fn first_loss(prefix_len: usize) -> usize {
    prefix_len.saturating_sub(1)
}

/// Perplexity from the mean next-token loss (natural logarithm) of each window: `exp` of their mean. NaN for no window.
///
/// A window's loss is the mean over the losses that count, those from [`first_loss`] on.
pub fn perplexity(window_losses: &[f64]) -> f64 {
    (window_losses.iter().sum::<f64>() / window_losses.len() as f64).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_joined_as_the_data_set_is() {
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
        let lists = |tokens: &[u32], prefix: &[u32], seq_len, most| {
            let windows = windows(tokens, prefix, seq_len, most).unwrap();
            windows.map(|windows| windows.iter().map(<[u32]>::to_vec).collect::<Vec<_>>())
        };
        assert_eq!(lists(&[1, 2, 3, 4, 5], &[], 2, 9), Some(vec![vec![1, 2], vec![3, 4]]));
        assert_eq!(lists(&[1, 2, 3, 4, 5], &[7], 2, 3), Some(vec![vec![7, 1], vec![7, 2], vec![7, 3]]));
        assert_eq!(lists(&[1, 2, 3], &[], 9, 9), Some(vec![vec![1, 2, 3]]));
        assert_eq!(lists(&[1, 2, 3], &[7], 9, 9), Some(vec![vec![7, 1, 2, 3]]));
        assert_eq!(lists(&[7, 1], &[7], 9, 9), Some(vec![vec![7, 1]]));
        for (tokens, prefix) in [(&[][..], &[][..]), (&[1], &[]), (&[], &[7]), (&[7], &[7]), (&[7, 8], &[7, 8])] {
            assert_eq!(lists(tokens, prefix, 9, 9), None, "{tokens:?} behind {prefix:?}");
        }
        assert!(windows(&[1, 2, 3], &[7, 8], 2, 9).is_err());
    }

    #[test]
    fn losses_of_prefix_tokens_do_not_count() {
        // Of a window of 5 tokens the losses are those of tokens 1 to 4; the text begins at token 0, 1, 2.
        assert_eq!([0, 1, 2].map(first_loss), [0, 0, 1]);
    }

    #[test]
    fn the_short_text_is_plain_prose() {
        assert!((2500..6000).contains(&SHORT_TEXT.len()), "{}", SHORT_TEXT.len());
        assert!(SHORT_TEXT.is_ascii() && SHORT_TEXT.ends_with(".\n"));
    }
}
