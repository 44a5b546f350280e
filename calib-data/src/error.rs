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
    #[error("the calibration text does not encode: {reason}")]
    Encode {
        /// What the tokenizer said.
        reason: String,
    },
    /// There are not enough tokens for the windows that were asked for.
    #[error("the text has {tokens} tokens, {samples} windows of {seq_len} need {}", samples.saturating_mul(*seq_len))]
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
        let _ = self;
        todo!()
    }
}
