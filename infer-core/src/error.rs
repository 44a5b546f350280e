//! [`Error`]: failures of loading or running a model, each with a hint.

use crate::memory::{Need, Room};

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure of loading or running a model.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A failure with the model's files.
    #[error(transparent)]
    Format(#[from] model_format::Error),
    /// A failure of the GPU.
    #[error(transparent)]
    Gpu(#[from] webgpu_kernels::Error),
    /// `--device` selects a device that does not exist.
    #[error("no device `{choice}`; {}", if found.is_empty() { "no GPU and no software driver was found".to_owned() } else { format!("found: {}", found.join(", ")) })]
    NoSuchDevice {
        /// The requested device.
        choice: String,
        /// Number and name of each existing device.
        found: Vec<String>,
    },
    /// A failure of the CPU backend.
    #[cfg(feature = "native")]
    #[error("the CPU backend failed: {0}")]
    Cpu(#[from] candle_core::Error),
    /// tokenizer.json does not load, or a text cannot be encoded.
    #[error("the tokenizer failed: {reason}")]
    Tokenizer {
        /// The tokenizer's or the template's message.
        reason: String,
    },
    /// The chat template does not parse, or rejects the conversation.
    #[error("the chat template failed: {reason}")]
    ChatTemplate {
        /// The tokenizer's or the template's message.
        reason: String,
    },
    /// The conversation is longer than the context.
    #[error("the conversation has {tokens} tokens, but the context has only {context}")]
    ContextFull {
        /// Tokens of the prompt.
        tokens: usize,
        /// Capacity of the context in tokens.
        context: usize,
    },
    /// A text is empty or longer than the context.
    #[error("the text has {tokens} tokens; the model accepts 1 to {context}")]
    TextLength {
        /// Tokens of the text.
        tokens: usize,
        /// Capacity of the context in tokens.
        context: usize,
    },
    /// The model and its cache do not fit into the device's memory.
    #[error("the model needs {need} of memory, but only {room} is available")]
    DoesNotFit {
        /// The needed memory.
        need: Need,
        /// The available memory.
        room: Room,
        /// The longest context that fits. `None` if no useful context fits.
        longest: Option<usize>,
    },
    /// A text has a token beyond the embedding table.
    #[error("{} at position {position} is beyond the embedding table of {rows} rows", token_name(*id, token))]
    TokenOutOfRange {
        /// The id.
        id: u32,
        /// The token's text, if a tokenizer made the ids.
        token: Option<String>,
        /// Its position in the text, from 0.
        position: usize,
        /// Rows of the embedding table. Valid ids are below this.
        rows: usize,
    },
    /// The chat template writes a token beyond the embedding table.
    #[error(
        "`{field}` in `{file}` must hold tokens with ids below {rows}, the rows of the embedding table, found: {}",
        token_name(*id, token)
    )]
    TemplateToken {
        /// The file with the template.
        file: String,
        /// The field with the template.
        field: &'static str,
        /// The id.
        id: u32,
        /// The token's text, if the tokenizer has the id.
        token: Option<String>,
        /// Rows of the embedding table.
        rows: usize,
    },
    /// `logit_bias` has an id beyond the embedding table.
    #[error("`logit_bias` must hold token ids below {rows}, the rows of the embedding table, found: {id}")]
    BiasOutOfRange {
        /// The id.
        id: u32,
        /// Rows of the embedding table.
        rows: usize,
    },
    /// A parameter is out of range.
    #[error("`{name}` must be {expected}, found: {found}")]
    BadParameter {
        /// The parameter.
        name: &'static str,
        /// Its range.
        expected: &'static str,
        /// The given value.
        found: String,
    },
}

/// A token in a message: its id, and its text if known.
fn token_name(id: u32, token: &Option<String>) -> String {
    match token {
        Some(token) => format!("token `{token}` (id {id})"),
        None => format!("token id {id}"),
    }
}

impl Error {
    /// True if a workgroup's wait for another one expired. Chains are then disabled, and the same work can run again.
    pub(crate) fn is_expired_wait(&self) -> bool {
        matches!(self, Error::Gpu(webgpu_kernels::Error::WaitExpired))
    }

    /// The user's next step, if one is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::Format(error) => error.hint(),
            Error::Gpu(error) => error.hint(),
            Error::NoSuchDevice { .. } => {
                Some("list the devices with `chat-cli devices`, or use `--device cpu`".into())
            }
            Error::Tokenizer { .. } => Some("download the model's `tokenizer.json` again".into()),
            Error::ContextFull { .. } => {
                Some("start a new conversation, or load the model with a longer context".into())
            }
            Error::DoesNotFit { longest: Some(longest), .. } => {
                Some(format!("a context of up to {longest} tokens fits"))
            }
            Error::DoesNotFit { longest: None, .. } => {
                Some("use a model with fewer parameters or fewer bits per weight, or run it on the CPU".into())
            }
            Error::TextLength { .. } => Some("cut the text into parts of that length".into()),
            Error::TokenOutOfRange { token: None, rows, .. } => Some(format!(
                "the model has ids from 0 to {}; use ids from the model's own tokenizer",
                rows.saturating_sub(1)
            )),
            Error::TokenOutOfRange { token: Some(_), .. } => Some(
                "remove this token from the text, or use the `tokenizer.json` that was published with these weights: this one has \
                 more tokens than the model"
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
