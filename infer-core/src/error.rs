//! What can go wrong while a model is loaded or run, each with what to do about it.

use crate::memory::{Need, Room};

/// The result of loading or running a model.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong while a model is loaded or run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The model's files.
    #[error(transparent)]
    Format(#[from] model_format::Error),
    /// The GPU.
    #[error(transparent)]
    Gpu(#[from] webgpu_kernels::Error),
    /// `--device` names a device that is not there.
    #[error("there is no device `{choice}`; {}", if found.is_empty() { "no GPU was found, nor a driver that plays one".to_owned() } else { format!("there are: {}", found.join(", ")) })]
    NoSuchDevice {
        /// What was asked for.
        choice: String,
        /// Number and name of each that there is.
        found: Vec<String>,
    },
    /// The CPU backend.
    #[cfg(feature = "native")]
    #[error("the CPU backend failed: {0}")]
    Cpu(#[from] candle_core::Error),
    /// tokenizer.json does not load, or a text does not encode.
    #[error("the tokenizer failed: {reason}")]
    Tokenizer {
        /// What it said.
        reason: String,
    },
    /// The chat template does not parse, or refuses the conversation.
    #[error("the chat template failed: {reason}")]
    ChatTemplate {
        /// What it said.
        reason: String,
    },
    /// The conversation is longer than the context.
    #[error("the conversation has {tokens} tokens, the context has room for {context}")]
    ContextFull {
        /// Tokens of the prompt.
        tokens: usize,
        /// Tokens that fit.
        context: usize,
    },
    /// A text without a token, or with more than the context has room for.
    #[error("the text has {tokens} tokens, this model runs texts of 1 to {context}")]
    TextLength {
        /// Tokens of the text.
        tokens: usize,
        /// Tokens that fit.
        context: usize,
    },
    /// The model and its cache are larger than the device's memory.
    #[error("the model needs {need} of memory, and there are {room} free for it")]
    DoesNotFit {
        /// What it needs.
        need: Need,
        /// What it may take.
        room: Room,
        /// The longest context that fits.
        longest: Option<usize>,
    },
    /// A text has a token for which the embedding table has no row.
    #[error("{} at position {position} is beyond the embedding table of {rows} rows", token_name(*id, token))]
    TokenOutOfRange {
        /// The id.
        id: u32,
        /// How the tokenizer writes it, where a tokenizer made the text's ids.
        token: Option<String>,
        /// Where it stands in the text, from 0.
        position: usize,
        /// Rows of the embedding table: the model has ids below this.
        rows: usize,
    },
    /// The chat template writes a token for which the embedding table has no row.
    #[error(
        "`{field}` in `{file}` must hold tokens with ids below {rows}, the rows of the embedding table, found: {}",
        token_name(*id, token)
    )]
    TemplateToken {
        /// The file that holds the template.
        file: String,
        /// The field of the template in it.
        field: &'static str,
        /// The id.
        id: u32,
        /// How the tokenizer writes it, if it knows it.
        token: Option<String>,
        /// Rows of the embedding table.
        rows: usize,
    },
    /// `logit_bias` has an id for which the model computes no logit.
    #[error("`logit_bias` must hold token ids below {rows}, the rows of the embedding table, found: {id}")]
    BiasOutOfRange {
        /// The id.
        id: u32,
        /// Rows of the embedding table.
        rows: usize,
    },
    /// A sampling parameter is out of its range.
    #[error("`{name}` must be {expected}, found: {found}")]
    BadParameter {
        /// The parameter.
        name: &'static str,
        /// Its range.
        expected: &'static str,
        /// What was given.
        found: String,
    },
}

/// A token for a message: its id, with its text where that is known.
fn token_name(id: u32, token: &Option<String>) -> String {
    match token {
        Some(token) => format!("token `{token}` (id {id})"),
        None => format!("token id {id}"),
    }
}

impl Error {
    /// Whether a workgroup stopped waiting: the same work, done again, is done without.
    pub(crate) fn is_expired_wait(&self) -> bool {
        matches!(self, Error::Gpu(webgpu_kernels::Error::WaitExpired))
    }

    /// What the user can do about it, if anything.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::Format(error) => error.hint(),
            Error::Gpu(error) => error.hint(),
            Error::NoSuchDevice { .. } => {
                Some("`chat-cli devices` lists what there is; `--device cpu` always works".into())
            }
            Error::Tokenizer { .. } => Some("download the model's `tokenizer.json` again".into()),
            Error::ContextFull { .. } => {
                Some("begin a new conversation, or load the model with a longer context".into())
            }
            Error::DoesNotFit { longest: Some(longest), .. } => {
                Some(format!("a context of up to {longest} tokens fits"))
            }
            Error::DoesNotFit { longest: None, .. } => {
                Some("take a model with fewer parameters or fewer bits per weight, or run it on the CPU".into())
            }
            Error::TextLength { .. } => Some("cut the text into parts of that length".into()),
            Error::TokenOutOfRange { token: None, rows, .. } => Some(format!(
                "the model has ids from 0 to {}; use ids from the model's own tokenizer",
                rows.saturating_sub(1)
            )),
            Error::TokenOutOfRange { token: Some(_), .. } => Some(
                "leave this text out, or use the `tokenizer.json` that was published with these weights: this one has more \
                 tokens than the model"
                    .into(),
            ),
            Error::TemplateToken { file, .. } => {
                Some(format!("compare `{file}` and `tokenizer.json` with those published with these weights"))
            }
            Error::BiasOutOfRange { .. } => Some("use ids from the model's own tokenizer".into()),
            #[cfg(feature = "native")]
            Error::Cpu(_) => None,
            Error::ChatTemplate { .. } | Error::BadParameter { .. } => None,
        }
    }
}
