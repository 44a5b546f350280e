//! [`Error`]: errors of a conversion, each with its hint.

use std::fmt::Write;

/// The result of a conversion.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of a conversion.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An error in the files of the checkpoint or the folder.
    #[error(transparent)]
    Format(#[from] model_format::Error),
    /// The checkpoint has several errors, all found before the first write.
    #[error("`{location}` does not match its configuration{}", list(problems))]
    Problems {
        /// The checkpoint.
        location: String,
        /// At least two.
        problems: Vec<model_format::Error>,
    },
    /// A weight overflows the format's number type.
    #[error("parameter `{name}` in `{location}` has {value} at index {index}, which overflows {dtype}")]
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
    /// The checkpoint has a nonzero bias where the architecture has none.
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
    /// A folder without a configuration matches several formats.
    #[error("`{folder}` has no `mlc-chat-config.json`, and its tensors have the shapes of {}", formats.join(" and "))]
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
    /// The user's next step.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Error::Format(error) => return error.hint(),
            Error::Problems { problems, .. } => return problems.first().and_then(model_format::Error::hint),
            Error::Overflow { .. } => "use a format with a wider number type, such as q4f32_1 or q0f32".into(),
            Error::UnexpectedBias { .. } => {
                "check `model_type` in `config.json`: these weights belong to another architecture".into()
            }
            Error::DuplicateToken { .. } => {
                "remove one of the two entries; tokenizers disagree about such files".into()
            }
            Error::AmbiguousFormat { .. } => "name the format with `--quantization`".into(),
            Error::Cancelled => return None,
        })
    }
}

/// The first problems, one per line.
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
