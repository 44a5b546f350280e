//! A chat in the terminal: what it reads, what it prints, and in which order.
//!
//! The program is `main.rs`: it parses flags, loads the model and waits for it. This library is what can be tested
//! without a terminal and without a model: the conversation ([`Repl`]) over an [`Assistant`] that answers and [`Lines`]
//! that a person types, the settings, and the reports.
//!
//! ```
//! use chat_cli::Command;
//!
//! assert_eq!(Command::parse("/set temperature=0").unwrap(), Some(Command::Set("temperature=0".into())));
//! assert_eq!(Command::parse("What is /set?").unwrap(), None);
//! ```

#![cfg_attr(not(test), warn(clippy::print_stdout, clippy::print_stderr, clippy::disallowed_methods))]

pub mod bench_report;
pub mod command;
pub mod device;
mod printable;
pub mod repl;
pub mod report;
pub mod settings;
pub mod shapes;

use std::io;

use infer_core::{FinishReason, Message, SamplingParams, Stats, TokenLogprobs};

pub use command::Command;
pub use device::DeviceInfo;
pub use printable::Printable;
pub use repl::{Line, Lines, Repl};
pub use settings::Settings;

/// Something that answers a conversation.
pub trait Assistant {
    /// The answer to `messages`. Each piece of its text goes to `show` as it comes.
    fn answer(
        &mut self,
        messages: &[Message],
        params: &SamplingParams,
        show: &mut dyn FnMut(&str) -> io::Result<()>,
    ) -> Result<Answer>;

    /// Forgets what it holds of the conversation.
    fn reset(&mut self);
}

/// An answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// Its text.
    pub text: String,
    /// Ids of the prompt.
    pub prompt_tokens: Vec<u32>,
    /// Ids of the answer.
    pub tokens: Vec<u32>,
    /// Why it ended; `None` if it was interrupted.
    pub finish_reason: Option<FinishReason>,
    /// What it took.
    pub stats: Stats,
    /// How likely each token was, where that was asked for.
    pub logprobs: Vec<TokenLogprobs>,
}

/// The result of a conversation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong in a conversation.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The engine.
    #[error(transparent)]
    Engine(#[from] infer_core::Error),
    /// The terminal, or whatever stands in its place.
    #[error("cannot read or write: {0}")]
    Io(#[from] io::Error),
    /// A command that is not understood.
    #[error("{message}")]
    Command {
        /// What is wrong.
        message: String,
        /// What would be right.
        hint: String,
    },
}

impl Error {
    /// What the user can do about it, if anything.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::Engine(error) => error.hint(),
            Error::Io(_) => None,
            Error::Command { hint, .. } => Some(hint.clone()),
        }
    }

    /// Whether the reader of our output is gone, as in `chat-cli ... | head`.
    pub fn is_broken_pipe(&self) -> bool {
        matches!(self, Error::Io(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}
