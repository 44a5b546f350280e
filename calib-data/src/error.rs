//! [`Error`]: errors of calibration text, each with a hint.

use std::path::PathBuf;

/// The result type of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error while reading calibration text or cutting it into windows. [`Error::hint`] gives the user's next step.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is missing or unreadable.
    #[error("cannot read `{}`: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The file contains no text, or white space only.
    #[error("`{}` contains no text", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// The file is not UTF-8.
    #[error("`{}` is not UTF-8: line {line}, byte {column}", path.display())]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// Line of the first invalid byte, counted from 1.
        line: usize,
        /// Position of that byte in its line, counted from 1.
        column: usize,
    },
    /// A record has no usable text: invalid JSON, a wrong field or a wrong type.
    #[error("{unit} {number} of `{}`: {reason}", path.display())]
    BadRecord {
        /// The file.
        path: PathBuf,
        /// `line` or `row`.
        unit: &'static str,
        /// Number of the line or row, counted from 1.
        number: usize,
        /// The fault of the record.
        reason: String,
    },
    /// A parquet file is damaged or lacks the wanted column.
    #[error("cannot read `{}` as parquet: {reason}", path.display())]
    BadParquet {
        /// The file.
        path: PathBuf,
        /// The fault of the file.
        reason: String,
    },
    /// No file and no data set has this name.
    #[error("`{source_name}` is neither a file nor a known data set")]
    UnknownSource {
        /// The source as the user named it.
        source_name: String,
    },
    /// The source is a test split, which is reserved for evaluation.
    #[error("`{source_name}` is a test split, which is reserved for evaluation")]
    TestSplit {
        /// The source as the user named it.
        source_name: String,
    },
    /// The weight after a source's name is not a positive number.
    #[error("no file is named `{source_name}`, and the text after its last `=` is not a positive number")]
    BadWeight {
        /// The source as the user named it.
        source_name: String,
    },
    /// Calibration text and evaluation text overlap.
    #[error("`{source_name}` shares {run} consecutive tokens with `{evaluation}`")]
    Overlap {
        /// The calibration source.
        source_name: String,
        /// The evaluation text.
        evaluation: String,
        /// Number of consecutive tokens that count as an overlap.
        run: usize,
    },
    /// The data set could not be fetched.
    #[error(transparent)]
    Hub(#[from] model_hub::Error),
    /// The tokenizer rejected a text.
    #[error("cannot tokenize the text: {reason}")]
    Encode {
        /// The tokenizer's message.
        reason: String,
    },
    /// The text has too few tokens for the requested windows.
    #[error("the text has {tokens} tokens, but {}", required(*samples, *seq_len, *prefix))]
    TooShort {
        /// Tokens in the text.
        tokens: usize,
        /// Requested windows.
        samples: usize,
        /// Tokens per window, including the prefix.
        seq_len: usize,
        /// Prefix tokens at the start of each window.
        prefix: usize,
        /// Windows that the text can fill.
        available: usize,
    },
    /// The prefix fills the whole window.
    #[error("a window of {seq_len} tokens has no room for text after a prefix of {prefix} tokens")]
    NoRoom {
        /// Tokens per window, including the prefix.
        seq_len: usize,
        /// Prefix tokens at the start of each window.
        prefix: usize,
    },
}

impl Error {
    /// The user's next step, if the user can act.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Error::Read { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                "check the path: calibration text is a plain text file, a `.jsonl` or a `.parquet`".into()
            }
            Error::Read { .. } => "check that the path is a file and that you may read it".into(),
            Error::Empty { .. } => "use text that resembles the model's later input".into(),
            Error::NotUtf8 { .. } => "convert the file, for example with `iconv -f ISO-8859-1 -t UTF-8`".into(),
            Error::BadRecord { .. } => {
                r#"write each record as `{"text": ".."}` or `{"messages": [{"role": "user", "content": ".."}, ..]}`, or name the field that has the text"#.into()
            }
            Error::BadParquet { .. } => "download the file again, or name the column that has the text".into(),
            Error::UnknownSource { .. } => format!("name a file, `self`, or a data set of the hub: {}", data_sets()),
            Error::TestSplit { .. } => "name the data set without a split; this selects its training split".into(),
            Error::BadWeight { .. } => "write a source with its share as `NAME=2` or `NAME=0.5`".into(),
            Error::Overlap { .. } => "use different text for calibration or for evaluation: perplexity on calibration \
                                      text does not measure the model"
                .into(),
            Error::Hub(error) => return error.hint(),
            Error::Encode { .. } => return None,
            Error::TooShort { tokens, seq_len, prefix, available, .. } => match available {
                0 => format!("use a longer text, or windows of at most {} tokens", tokens + prefix),
                windows => format!("use a longer text, or request at most {windows} windows of {seq_len} tokens"),
            },
            Error::NoRoom { prefix, .. } => format!("use windows of at least {} tokens", prefix + 1),
        })
    }
}

/// The number of text tokens that the windows need, as a clause.
fn required(samples: usize, seq_len: usize, prefix: usize) -> String {
    let window_text = seq_len - prefix;
    let of_text = if prefix > 0 { format!(" ({window_text} of them text)") } else { String::new() };
    format!("{samples} windows of {seq_len} tokens{of_text} need {}", samples.saturating_mul(window_text))
}

/// The distinct names in [`DATA_SETS`](crate::DATA_SETS), for a hint.
fn data_sets() -> String {
    let mut names: Vec<_> = crate::DATA_SETS.iter().map(|data_set| format!("`{}`", data_set.name)).collect();
    names.dedup();
    names.join(", ")
}
