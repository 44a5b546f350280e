//! The protocol by which perplexities are compared, and a short text to apply it to where no data set is at hand.
//!
//! The text's tokens, without any special token, are cut into windows that do not overlap
//! ([`TokenWindows::all`](crate::TokenWindows::all)); each window is run alone. GPTQ's authors measure so, with windows
//! of 2048.

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

/// Perplexity from the mean next-token loss (natural logarithm) of each window: `exp` of their mean. NaN for no window.
///
/// A window's loss is the mean over its `seq_len - 1` predictions.
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
    fn the_short_text_is_plain_prose() {
        assert!((2500..6000).contains(&SHORT_TEXT.len()), "{}", SHORT_TEXT.len());
        assert!(SHORT_TEXT.is_ascii() && SHORT_TEXT.ends_with(".\n"));
    }
}
