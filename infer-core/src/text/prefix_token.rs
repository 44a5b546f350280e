//! [`PrefixToken`]: the meaning of `--prefix-token` in every program.

use std::{fmt, str::FromStr};

use super::tokenizer::Tokenizer;
use crate::{Error, Result};

/// The tokens before a text or a window of one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PrefixToken {
    /// The tokenizer's own prefix: BOS if the model has one.
    #[default]
    Auto,
    /// No token.
    None,
}

impl PrefixToken {
    /// Every value.
    pub const ALL: [PrefixToken; 2] = [PrefixToken::Auto, PrefixToken::None];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            PrefixToken::Auto => "auto",
            PrefixToken::None => "none",
        }
    }

    /// The help text of this value.
    pub fn help(self) -> &'static str {
        match self {
            PrefixToken::Auto => "The tokenizer's prefix: BOS if the model has one",
            PrefixToken::None => "No token",
        }
    }

    /// The ids before a text.
    pub fn ids(self, tokenizer: &Tokenizer) -> &[u32] {
        match self {
            PrefixToken::Auto => tokenizer.prefix(),
            PrefixToken::None => &[],
        }
    }
}

impl FromStr for PrefixToken {
    type Err = Error;

    fn from_str(text: &str) -> Result<PrefixToken> {
        PrefixToken::ALL.into_iter().find(|prefix| prefix.name() == text).ok_or_else(|| Error::BadParameter {
            name: "prefix-token",
            expected: "`auto` or `none`",
            found: text.into(),
        })
    }
}

impl fmt::Display for PrefixToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_is_the_inverse_of_parsing() {
        for prefix in PrefixToken::ALL {
            assert_eq!(prefix.to_string().parse::<PrefixToken>().unwrap(), prefix);
        }
        assert!("bos".parse::<PrefixToken>().unwrap_err().to_string().contains("`auto` or `none`, found: bos"));
    }
}
