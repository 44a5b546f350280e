//! What can be wrong with a model's files, each with what to do about it.

use std::path::PathBuf;

/// The result of reading or writing a model's files.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can be wrong with a model's files. Messages name file, tensor, expected and found.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused to read or write a file.
    #[error("cannot {action} `{}`: {source}", path.display())]
    Io {
        /// What was attempted: `read`, `write`, `create` ...
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Another process writes to the same folder.
    #[error("another run is writing to `{folder}`")]
    InUse {
        /// The folder.
        folder: String,
    },
    /// The output folder holds files that no run of the program wrote.
    #[error("`{folder}` holds files that no run of this program wrote: {}", some(names))]
    ForeignFiles {
        /// The folder.
        folder: String,
        /// Their names.
        names: Vec<String>,
        /// Whether all of them are named like files that the program writes, so that it could replace them.
        replaceable: bool,
    },
    /// A file that the model needs is not there.
    #[error("`{file}` is missing in `{folder}`")]
    MissingFile {
        /// The file's name.
        file: String,
        /// Where it was looked for.
        folder: String,
    },
    /// A JSON file does not parse or does not have the shape it must have.
    #[error("`{file}` is not what it should be: {reason}")]
    Malformed {
        /// The file.
        file: String,
        /// What is wrong.
        reason: String,
    },
    /// A field of a configuration is missing.
    #[error("`{file}` has no `{field}`")]
    MissingField {
        /// The configuration file.
        file: String,
        /// The field's name.
        field: String,
    },
    /// A field of a configuration has a value that cannot be.
    #[error("`{field}` in `{file}` must be {expected}, found: {found}")]
    BadField {
        /// The configuration file.
        file: String,
        /// The field's name.
        field: String,
        /// What would be right.
        expected: String,
        /// What is there.
        found: String,
    },
    /// The configuration's `model_type` is not one we have.
    #[error("unsupported architecture: `{model_type}`")]
    UnsupportedArchitecture {
        /// The value of `model_type`.
        model_type: String,
        /// Every `model_type` that is supported.
        supported: Vec<&'static str>,
    },
    /// There is no quantization format of that name.
    #[error("unknown quantization format: `{name}`")]
    UnknownFormat {
        /// The name that was given.
        name: String,
        /// The names of all formats.
        known: Vec<&'static str>,
    },
    /// There is no conversation template of that name.
    #[error("unknown conversation template: `{name}`")]
    UnknownConvTemplate {
        /// The name that was given.
        name: String,
        /// The names of all templates.
        known: Vec<&'static str>,
    },
    /// No conversation template is known to fit a checkpoint.
    #[error("cannot tell which conversation template fits: {reason}")]
    NoConvTemplate {
        /// What was looked at.
        reason: String,
        /// The names of all templates.
        known: Vec<&'static str>,
    },
    /// The conversation template is that of another model.
    #[error(
        "conversation template `{name}` does not fit: it stops at tokens {ids:?}, which this tokenizer does not have as special tokens"
    )]
    WrongConvTemplate {
        /// The template that was named.
        name: String,
        /// Its stop tokens that the tokenizer lacks.
        ids: Vec<u32>,
        /// The template that fits.
        fitting: String,
    },
    /// A conversation has a role that the template does not know.
    #[error("conversation template `{template}` has no place for a message of role `{role}`")]
    UnsupportedRole {
        /// The template.
        template: String,
        /// The role.
        role: String,
    },
    /// A parameter that the architecture needs is not in the checkpoint.
    #[error("parameter `{name}` is missing in `{file}`")]
    MissingParam {
        /// The parameter.
        name: String,
        /// The checkpoint.
        file: String,
        /// The name in the file that is nearest to it, if any is near.
        nearest: Option<String>,
    },
    /// A parameter has another shape than the configuration says.
    #[error("parameter `{name}` in `{file}` has shape {found:?}, expected {expected:?}")]
    ParamShape {
        /// The parameter.
        name: String,
        /// The checkpoint.
        file: String,
        /// The shape in the file.
        found: Vec<usize>,
        /// The shape that the configuration implies.
        expected: Vec<usize>,
    },
    /// A parameter has a number type that cannot be used here.
    #[error("parameter `{name}` in `{file}` has dtype {found}, expected {expected}")]
    ParamDtype {
        /// The parameter.
        name: String,
        /// The checkpoint.
        file: String,
        /// The dtype in the file.
        found: String,
        /// What would be right.
        expected: String,
    },
    /// A weight is NaN or infinite.
    #[error("parameter `{name}` in `{file}` holds {value} at index {index}")]
    NonFinite {
        /// The parameter.
        name: String,
        /// The checkpoint.
        file: String,
        /// Flat index of the first such value.
        index: usize,
        /// The value.
        value: f32,
    },
    /// A file is shorter or longer than its index says.
    #[error("`{file}` has {found} bytes, expected {expected}")]
    FileSize {
        /// The file.
        file: String,
        /// Bytes there are.
        found: u64,
        /// Bytes there should be.
        expected: u64,
    },
    /// A file's checksum is not the recorded one.
    #[error("`{file}` has checksum {found}, expected {expected}")]
    Checksum {
        /// The file.
        file: String,
        /// Of the bytes that are there.
        found: String,
        /// As recorded.
        expected: String,
    },
    /// A GPTQ tensor cannot be expressed in the wanted format without changing its values.
    #[error("`{name}` cannot be converted without loss: {reason}")]
    NotLossless {
        /// The module.
        name: String,
        /// Why.
        reason: String,
    },
}

/// The messages of an error and of its causes, from the outermost on; a cause that the message before it names already is
/// not repeated.
pub fn messages(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        if !text.ends_with(&message) {
            text = format!("{text}: {message}");
        }
        cause = error.source();
    }
    text
}

impl Error {
    /// What the user can do about it, if anything.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Error::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
                "free some disk space and run the same command again".into()
            }
            Error::Io { .. } => "check that the path exists and that you may use it".into(),
            Error::InUse { .. } => "wait for it, or write to another folder".into(),
            Error::ForeignFiles { replaceable: true, .. } => {
                "choose another folder, or replace them with --overwrite".into()
            }
            Error::ForeignFiles { replaceable: false, .. } => "choose another folder, or move them away".into(),
            Error::MissingFile { .. } => {
                "a model folder holds `config.json`, `tokenizer.json` and its weights; download it again if it is incomplete"
                    .into()
            }
            Error::Malformed { .. } | Error::FileSize { .. } | Error::Checksum { .. } => {
                "the file is damaged or incomplete: download or convert it again".into()
            }
            Error::MissingField { .. } | Error::BadField { .. } => {
                "compare the file with the one published with the model".into()
            }
            Error::UnsupportedArchitecture { supported, .. } => format!("supported: {}", supported.join(", ")),
            Error::UnknownFormat { known, .. } => format!("formats: {}", known.join(", ")),
            Error::UnknownConvTemplate { known, .. } => format!("templates: {}", known.join(", ")),
            Error::NoConvTemplate { known, .. } => format!("name one with `--conv-template`: {}", known.join(", ")),
            Error::WrongConvTemplate { fitting, .. } => {
                format!("this model's template is `{fitting}`: name that one, or none")
            }
            Error::UnsupportedRole { .. } => "a system message may only come first".into(),
            Error::MissingParam { nearest: Some(near), .. } => format!("the nearest name in the file is `{near}`"),
            Error::MissingParam { .. } => "is this a checkpoint of the architecture that `config.json` names?".into(),
            Error::ParamShape { .. } => "`config.json` and the weights do not belong together".into(),
            Error::ParamDtype { .. } => "float checkpoints are read in bf16, f16 and f32; GPTQ checkpoints with 4 bits".into(),
            Error::NonFinite { .. } => "the checkpoint is damaged at its source; take another copy".into(),
            Error::NotLossless { .. } => {
                "`--refit` takes the nearest values the format has, and reports the error; or quantize again with \
                 `gptq-quant --grid q4f16_1`, or symmetrically and without act-order over dynamic groups"
                    .into()
            }
        })
    }
}

/// The first names of a list that may be long.
fn some(names: &[String]) -> String {
    const SHOWN: usize = 5;
    let shown = names.iter().take(SHOWN).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN { format!("{shown} and {} more", names.len() - SHOWN) } else { shown }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_told_once() {
        let source = std::io::Error::other("no such luck");
        let error = Error::Io { action: "read", path: "a.json".into(), source };
        assert_eq!(messages(&error), "cannot read `a.json`: no such luck");
        let outer = std::io::Error::other(error);
        assert_eq!(messages(&outer), "cannot read `a.json`: no such luck");
    }
}
