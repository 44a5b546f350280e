//! What can go wrong on a GPU.

/// The result of asking something of a GPU.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong on a GPU.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No adapter answers.
    #[error("no GPU adapter found")]
    NoAdapter,
}

impl Error {
    /// What the user can do about it, if anything.
    pub fn hint(&self) -> Option<String> {
        None
    }
}
