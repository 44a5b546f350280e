//! What can go wrong while a model is fetched or opened, each with what to do about it.

/// The result of fetching or opening a model.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong while a model is fetched or opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The model's files.
    #[error(transparent)]
    Format(#[from] model_format::Error),
    /// The caller asked to stop.
    #[error("stopped")]
    Cancelled,
}

impl Error {
    /// What the user can do about it, if anything.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::Format(error) => error.hint(),
            Error::Cancelled => None,
        }
    }
}
