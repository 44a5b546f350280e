//! What can be wrong with a calibration text, each with what to do about it.

use std::path::PathBuf;

/// The result of reading a text or cutting it into windows.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can be wrong with a calibration text.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is not there, or may not be read.
    #[error("cannot read `{}`: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file holds no text.
    #[error("`{}` holds no text", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// The file is not UTF-8.
    #[error("`{}` is not UTF-8: line {line}, byte {column}", path.display())]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// Line of the first wrong byte, from 1.
        line: usize,
        /// Byte within the line, from 1.
        column: usize,
    },
    /// A line of a jsonl file is not what it should be.
    #[error("line {line} of `{}`: {reason}", path.display())]
    BadLine {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// The tokenizer refused a text.
    #[error("the text does not encode: {reason}")]
    Encode {
        /// What the tokenizer said.
        reason: String,
    },
    /// There are not enough tokens for the windows that were asked for.
    #[error("the text has {tokens} tokens, but {samples} windows of {seq_len} need {}", samples.saturating_mul(*seq_len))]
    TooShort {
        /// Tokens there are.
        tokens: usize,
        /// Windows asked for.
        samples: usize,
        /// Tokens per window.
        seq_len: usize,
    },
}

impl Error {
    /// What the user can do about it, if anything.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Error::Read { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                "check the path: a calibration text is a plain text file, or a `.jsonl`".into()
            }
            Error::Read { .. } => "check that the path is a file that you may read".into(),
            Error::Empty { .. } => "give a text of the kind that the model will meet".into(),
            Error::NotUtf8 { .. } => "convert it first, for example with `iconv -f ISO-8859-1 -t UTF-8`".into(),
            Error::BadLine { .. } => {
                r#"each line is `{"text": ".."}` or `{"messages": [{"role": "user", "content": ".."}, ..]}`"#.into()
            }
            Error::Encode { .. } => return None,
            Error::TooShort { tokens, seq_len, .. } => match tokens / seq_len {
                0 => format!("give a longer text, or windows of at most {tokens} tokens"),
                windows => format!("give a longer text, or ask for at most {windows} windows of {seq_len} tokens"),
            },
        })
    }
}
