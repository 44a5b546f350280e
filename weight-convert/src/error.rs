//! What can go wrong in a conversion, each with what to do about it.

use std::fmt::Write;

/// The result of a conversion.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong in a conversion.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The checkpoint's or the folder's files.
    #[error(transparent)]
    Format(#[from] model_format::Error),
    /// Several things are wrong with the checkpoint, all of them found before anything was written.
    #[error("`{location}` does not hold what its configuration says{}", list(problems))]
    Problems {
        /// The checkpoint.
        location: String,
        /// At least two.
        problems: Vec<model_format::Error>,
    },
    /// A weight is too large for the format's number type.
    #[error("parameter `{name}` in `{location}` holds {value} at index {index}, which {dtype} cannot hold")]
    Overflow {
        /// The checkpoint's tensor.
        name: String,
        /// The checkpoint.
        location: String,
        /// Flat index of the first such value.
        index: usize,
        /// The value.
        value: f32,
        /// The number type.
        dtype: String,
    },
    /// The checkpoint has a bias that the architecture has no place for, and it is not zero.
    #[error("`{name}` in `{location}` is not zero, but the architecture has no bias there")]
    UnexpectedBias {
        /// The tensor.
        name: String,
        /// The checkpoint.
        location: String,
    },
    /// tokenizer.json lists one token twice.
    #[error("`tokenizer.json` lists the added token {content:?} twice")]
    DuplicateToken {
        /// The token.
        content: String,
    },
    /// A folder without a configuration could be of more than one format.
    #[error("`{folder}` has no `mlc-chat-config.json`, and its tensors are shaped as those of {}", formats.join(" and of "))]
    AmbiguousFormat {
        /// The folder.
        folder: String,
        /// Names of the formats.
        formats: Vec<&'static str>,
    },
    /// The caller asked to stop.
    #[error("stopped; the same command goes on from here")]
    Cancelled,
}

impl Error {
    /// What the user can do about it, if anything.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Error::Format(error) => return error.hint(),
            Error::Problems { problems, .. } => return problems.first().and_then(model_format::Error::hint),
            Error::Overflow { .. } => "the model needs a format of wider numbers".into(),
            Error::UnexpectedBias { .. } => "`config.json` names an architecture that these weights are not of".into(),
            Error::DuplicateToken { .. } => {
                "remove one of the two entries; tokenizers disagree about such files".into()
            }
            Error::AmbiguousFormat { .. } => "name the format with `--quantization`".into(),
            Error::Cancelled => return None,
        })
    }
}

/// One problem a line, the first ones.
fn list(problems: &[model_format::Error]) -> String {
    const SHOWN: usize = 20;
    let mut text = format!(": {} problems", problems.len());
    for problem in problems.iter().take(SHOWN) {
        let _ = write!(text, "\n  {problem}");
        if let model_format::Error::MissingParam { nearest: Some(nearest), .. } = problem {
            let _ = write!(text, " (nearest: `{nearest}`)");
        }
    }
    if problems.len() > SHOWN {
        let _ = write!(text, "\n  and {} more", problems.len() - SHOWN);
    }
    text
}
