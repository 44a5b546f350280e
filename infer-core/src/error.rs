//! What can go wrong while a model is loaded or run, each with what to do about it.

use crate::memory::{Need, size};

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
    #[error(
        "the model needs {need} of memory, and there are {} for it",
        size(*budget)
    )]
    DoesNotFit {
        /// What it needs.
        need: Need,
        /// Bytes that it may take.
        budget: u64,
        /// The longest context that fits.
        longest: Option<usize>,
    },
    /// A token id that the vocabulary does not have.
    #[error("token id {id} at position {position} is beyond the vocabulary of {vocab_size}")]
    TokenOutOfRange {
        /// The id.
        id: u32,
        /// Where it stands, from 0.
        position: usize,
        /// Ids there are.
        vocab_size: usize,
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

impl Error {
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
            Error::TokenOutOfRange { vocab_size, .. } => Some(format!(
                "this model's ids are 0 to {}; ids of another model's tokenizer do not fit",
                vocab_size - 1
            )),
            #[cfg(feature = "native")]
            Error::Cpu(_) => None,
            Error::ChatTemplate { .. } | Error::BadParameter { .. } => None,
        }
    }
}
