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
    /// A record of a file is not what it should be.
    #[error("{unit} {number} of `{}`: {reason}", path.display())]
    BadRecord {
        /// The file.
        path: PathBuf,
        /// `line` or `row`.
        unit: &'static str,
        /// Which, from 1.
        number: usize,
        /// What is wrong.
        reason: String,
    },
    /// A parquet file is damaged, or lacks what is wanted of it.
    #[error("`{}` is no parquet file that can be read: {reason}", path.display())]
    BadParquet {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// There is neither a file nor a data set of this name.
    #[error("there is no file and no data set `{source_name}`")]
    UnknownSource {
        /// What the user named.
        source_name: String,
    },
    /// The part of a data set that models are measured with.
    #[error("`{source_name}` is what models are measured with, and no calibration text")]
    TestSplit {
        /// What the user named.
        source_name: String,
    },
    /// What follows a source's name is no share.
    #[error("`{source_name}` does not exist, and what follows its last `=` is not a share")]
    BadWeight {
        /// What the user named.
        source_name: String,
    },
    /// The text that the result is to be measured on is in the calibration text.
    #[error("`{source_name}` has {run} tokens in a row in common with `{evaluation}`")]
    Overlap {
        /// The calibration text.
        source_name: String,
        /// The text to measure on.
        evaluation: String,
        /// Tokens in a row.
        run: usize,
    },
    /// A data set cannot be had.
    #[error(transparent)]
    Hub(#[from] model_hub::Error),
    /// The tokenizer refused a text.
    #[error("the text does not encode: {reason}")]
    Encode {
        /// What the tokenizer said.
        reason: String,
    },
    /// There are not enough tokens for the windows that were asked for.
    #[error("the text has {tokens} tokens, but {}", needed(*samples, *seq_len, *prefix))]
    TooShort {
        /// Tokens there are.
        tokens: usize,
        /// Windows asked for.
        samples: usize,
        /// Tokens per window.
        seq_len: usize,
        /// How many of these are a prefix, and no text.
        prefix: usize,
        /// Windows there are.
        available: usize,
    },
    /// The tokens that each window begins with fill it.
    #[error("a window of {seq_len} tokens has no room for text behind a prefix of {prefix} tokens")]
    NoRoom {
        /// Tokens per window.
        seq_len: usize,
        /// Tokens that each window begins with.
        prefix: usize,
    },
}

impl Error {
    /// What the user can do about it, if anything.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Error::Read { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                "check the path: a calibration text is a plain text file, a `.jsonl` or a `.parquet`".into()
            }
            Error::Read { .. } => "check that the path is a file that you may read".into(),
            Error::Empty { .. } => "give a text of the kind that the model will meet".into(),
            Error::NotUtf8 { .. } => "convert it first, for example with `iconv -f ISO-8859-1 -t UTF-8`".into(),
            Error::BadRecord { .. } => {
                r#"each record is `{"text": ".."}` or `{"messages": [{"role": "user", "content": ".."}, ..]}`; the field of another name can be named"#.into()
            }
            Error::BadParquet { .. } => "download it again, or name the column that holds the text".into(),
            Error::UnknownSource { .. } => format!("name a file, `self`, or a data set of the hub: {}", data_sets()),
            Error::TestSplit { .. } => "take its part to learn from, which the name alone means".into(),
            Error::BadWeight { .. } => "a source with its share is `NAME=2` or `NAME=0.5`".into(),
            Error::Overlap { .. } => "calibrate on another text, or measure on one: a figure for text that the model was \
                                      fitted to says nothing"
                .into(),
            Error::Hub(error) => return error.hint(),
            Error::Encode { .. } => return None,
            Error::TooShort { tokens, seq_len, prefix, available, .. } => match available {
                0 => format!("give a longer text, or windows of at most {} tokens", tokens + prefix),
                windows => format!("give a longer text, or ask for at most {windows} windows of {seq_len} tokens"),
            },
            Error::NoRoom { prefix, .. } => format!("ask for windows of at least {} tokens", prefix + 1),
        })
    }
}

/// What windows need of a text.
fn needed(samples: usize, seq_len: usize, prefix: usize) -> String {
    let window_text = seq_len - prefix;
    let of_text = if prefix > 0 { format!(", {window_text} of them text,") } else { String::new() };
    format!("{samples} windows of {seq_len}{of_text} need {}", samples.saturating_mul(window_text))
}

/// The names of the data sets that have one.
fn data_sets() -> String {
    let mut names: Vec<_> = crate::DATA_SETS.iter().map(|data_set| format!("`{}`", data_set.name)).collect();
    names.dedup();
    names.join(", ")
}
