//! [`Error`]: errors of reading and writing a model's files, each with a hint.

use std::path::PathBuf;

/// The result type of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of reading or writing a model's files. Messages name the file, the tensor, the expected and the found
/// value. [`Error::hint`] gives the user's next step.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An error of the operating system.
    #[error("cannot {action} `{}`: {source}", path.display())]
    Io {
        /// The attempted action: `read`, `write`, `create` ...
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// Another process writes to the same folder.
    #[error("another run is writing to `{folder}`")]
    InUse {
        /// The folder.
        folder: String,
    },
    /// The output folder contains files that no run of the program wrote.
    #[error("`{folder}` contains files that this program did not write: {}", first_names(names))]
    ForeignFiles {
        /// The folder.
        folder: String,
        /// Names of these files.
        names: Vec<String>,
        /// True if the program writes files of all these names, so that it could replace them.
        replaceable: bool,
    },
    /// A file of the model is missing.
    #[error("`{file}` is missing in `{folder}`")]
    MissingFile {
        /// The file's name.
        file: String,
        /// The folder, or another location of model files.
        folder: String,
    },
    /// The content of a file is invalid: it does not parse, or its structure is wrong.
    #[error("`{file}` is malformed: {reason}")]
    Malformed {
        /// The file.
        file: String,
        /// The fault of the file.
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
    /// A field of a configuration has an invalid value.
    #[error("`{field}` in `{file}` must be {expected}, found: {found}")]
    BadField {
        /// The configuration file.
        file: String,
        /// The field's name.
        field: String,
        /// Description of a valid value.
        expected: String,
        /// The invalid value.
        found: String,
    },
    /// The configuration's `model_type` is not supported.
    #[error("unsupported architecture: `{model_type}`")]
    UnsupportedArchitecture {
        /// The value of `model_type`.
        model_type: String,
        /// All supported values of `model_type`.
        supported: Vec<&'static str>,
    },
    /// No quantization format has this name.
    #[error("unknown quantization format: `{name}`")]
    UnknownFormat {
        /// The unknown name.
        name: String,
        /// The names of all formats.
        known: Vec<&'static str>,
    },
    /// No conversation template has this name.
    #[error("unknown conversation template: `{name}`")]
    UnknownConvTemplate {
        /// The unknown name.
        name: String,
        /// The names of all templates.
        known: Vec<&'static str>,
    },
    /// No conversation template is known for a checkpoint.
    #[error("cannot tell which conversation template fits: {reason}")]
    NoConvTemplate {
        /// The evidence found in the checkpoint.
        reason: String,
        /// The names of all templates.
        known: Vec<&'static str>,
    },
    /// The conversation template belongs to another model.
    #[error(
        "conversation template `{name}` does not fit: it stops at tokens {ids:?}, which are not special tokens of this tokenizer"
    )]
    WrongConvTemplate {
        /// The template that the user named.
        name: String,
        /// Its stop tokens, which the tokenizer does not have.
        ids: Vec<u32>,
        /// The template that fits.
        fitting: String,
    },
    /// A message has a role that the template does not support, or a system message is not the first message.
    #[error("conversation template `{template}` does not support a message of role `{role}` here")]
    UnsupportedRole {
        /// The template.
        template: String,
        /// The role.
        role: String,
    },
    /// A parameter of the architecture is missing in the checkpoint.
    #[error("parameter `{name}` is missing in `{file}`")]
    MissingParam {
        /// The parameter.
        name: String,
        /// The checkpoint.
        file: String,
        /// The most similar name in the file, if one is similar.
        nearest: Option<String>,
    },
    /// A parameter's shape differs from the configuration.
    #[error("parameter `{name}` in `{file}` has shape {found:?}, expected {expected:?}")]
    ParamShape {
        /// The parameter.
        name: String,
        /// The checkpoint.
        file: String,
        /// The shape in the file.
        found: Vec<usize>,
        /// The shape required by the configuration.
        expected: Vec<usize>,
    },
    /// A parameter has an unsupported number type.
    #[error("parameter `{name}` in `{file}` has dtype {found}, expected {expected}")]
    ParamDtype {
        /// The parameter.
        name: String,
        /// The checkpoint.
        file: String,
        /// The dtype in the file.
        found: String,
        /// The supported dtypes.
        expected: String,
    },
    /// A weight is NaN or infinite.
    #[error("parameter `{name}` in `{file}` has {value} at index {index}")]
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
    /// A file's size differs from its index or header.
    #[error("`{file}` has {found} bytes, expected {expected}")]
    FileSize {
        /// The file.
        file: String,
        /// Actual size in bytes.
        found: u64,
        /// Expected size in bytes.
        expected: u64,
    },
    /// A file's checksum differs from the recorded checksum.
    #[error("`{file}` has checksum {found}, expected {expected}")]
    Checksum {
        /// The file.
        file: String,
        /// Checksum of the file's content.
        found: String,
        /// Recorded checksum.
        expected: String,
    },
    /// A GPTQ matrix has values that the target format cannot represent.
    #[error("`{name}` cannot be converted without loss: {reason}")]
    NotLossless {
        /// The module.
        name: String,
        /// The first value or setting that the format cannot represent.
        reason: String,
    },
}

/// Joins the messages of an error and its causes, outermost first. Skips a cause whose message the previous one already
/// ends with.
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
    /// The user's next step, if the user can act.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Error::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
                "free some disk space and run the same command again".into()
            }
            Error::Io { .. } => "check that the path exists and that you have access to it".into(),
            Error::InUse { .. } => "wait for that run, or write to another folder".into(),
            Error::ForeignFiles { replaceable: true, .. } => {
                "choose another folder, or replace them with --overwrite".into()
            }
            Error::ForeignFiles { replaceable: false, .. } => "choose another folder, or move them away".into(),
            Error::MissingFile { .. } => {
                "a model folder needs `config.json`, `tokenizer.json` and the weights; download the model again if it is \
                 incomplete"
                    .into()
            }
            Error::Malformed { .. } | Error::FileSize { .. } | Error::Checksum { .. } => {
                "the file is damaged or incomplete: download or convert it again".into()
            }
            Error::MissingField { .. } | Error::BadField { .. } => {
                "compare the file with the published file of this model".into()
            }
            Error::UnsupportedArchitecture { supported, .. } => format!("supported: {}", supported.join(", ")),
            Error::UnknownFormat { known, .. } => format!("formats: {}", known.join(", ")),
            Error::UnknownConvTemplate { known, .. } => format!("templates: {}", known.join(", ")),
            Error::NoConvTemplate { known, .. } => format!("name one with `--conv-template`: {}", known.join(", ")),
            Error::WrongConvTemplate { fitting, .. } => {
                format!("this model's template is `{fitting}`: name it, or omit the template")
            }
            Error::UnsupportedRole { .. } => "a system message must be the first message".into(),
            Error::MissingParam { nearest: Some(near), .. } => format!("the most similar name in the file is `{near}`"),
            Error::MissingParam { .. } => "check that the weights match the architecture in `config.json`".into(),
            Error::ParamShape { .. } => "`config.json` and the weights are of different models".into(),
            Error::ParamDtype { .. } => "float checkpoints may use bf16, f16 and f32; GPTQ checkpoints, i32 codes and f16 scales".into(),
            Error::NonFinite { .. } => "the published checkpoint itself is damaged: use another copy".into(),
            Error::NotLossless { .. } => {
                "`--refit` takes the nearest values of the format and reports the error; or quantize again with `gptq-quant \
                 --grid q4f16_1`, or symmetrically and without act-order over dynamic groups"
                    .into()
            }
        })
    }
}

/// The first names of a list, for a message, and the number of the others.
fn first_names(names: &[String]) -> String {
    const SHOWN: usize = 5;
    let shown = names.iter().take(SHOWN).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN { format!("{shown} and {} more", names.len() - SHOWN) } else { shown }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_not_repeated() {
        let source = std::io::Error::other("no such luck");
        let error = Error::Io { action: "read", path: "a.json".into(), source };
        assert_eq!(messages(&error), "cannot read `a.json`: no such luck");
        let outer = std::io::Error::other(error);
        assert_eq!(messages(&outer), "cannot read `a.json`: no such luck");
    }
}
