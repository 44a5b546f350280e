//! [`Error`]: each with its hint.

use std::io;

/// A result of this library.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of this library.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An error of the engine.
    #[error(transparent)]
    Engine(#[from] infer_core::Error),
    /// Input or output failed.
    #[error("cannot read or write: {0}")]
    Io(#[from] io::Error),
    /// A command or name that does not exist.
    #[error("{message}")]
    Command {
        /// The fault.
        message: String,
        /// The valid input.
        hint: String,
    },
    /// The CPU was selected to check kernels.
    #[error("the CPU has no kernels to check")]
    NoKernels,
}

impl Error {
    /// The user's next step.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::Engine(error) => error.hint(),
            Error::Io(_) => None,
            Error::Command { hint, .. } => Some(hint.clone()),
            Error::NoKernels => {
                Some("`chat-cli devices` lists the other devices; `--device gpu` accepts a software device too".into())
            }
        }
    }
}
