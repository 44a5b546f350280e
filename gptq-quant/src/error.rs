//! [`Error`]: the faults of users, files and machines, each with a hint.

use std::path::PathBuf;

/// The result of quantizing a model.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error while quantizing a model. [`Error::hint`] gives the next step.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An error in the model's files or the output folder.
    #[error(transparent)]
    Format(#[from] model_format::Error),
    /// An error of the forward pass, the tokenizer or the chat template.
    #[error(transparent)]
    Engine(#[from] infer_core::Error),
    /// The checkpoint is quantized already.
    #[error("`{location}` is quantized already")]
    AlreadyQuantized {
        /// The checkpoint.
        location: String,
    },
    /// The packed layout cannot store a matrix of this shape.
    #[error("`{module}` is [{rows}, {cols}], but packed codes need multiples of {multiple}")]
    Unpackable {
        /// The module.
        module: String,
        /// Its outputs.
        rows: usize,
        /// Its inputs.
        cols: usize,
        /// Codes per word.
        multiple: usize,
    },
    /// The rules give different options to parts of one matrix.
    #[error("`{}` are quantized as one matrix, but the rules give them different options", modules.join("`, `"))]
    UnequalParts {
        /// Their names.
        modules: Vec<String>,
    },
    /// A rule matches no matrix of the model.
    #[error("the rule `{rule}` matches no matrix of the model")]
    RuleOfNothing {
        /// The rule.
        rule: String,
    },
    /// The head cannot be quantized, because the model has none apart from its embedding table.
    #[error("`{location}` has no head of its own: its embedding table is the head")]
    TiedHead {
        /// The checkpoint.
        location: String,
    },
    /// Activations of the model became infinite or NaN on the calibration text.
    #[error("the inputs of `{module}` are not finite on the calibration text")]
    NonFiniteActivations {
        /// The module.
        module: String,
    },
    /// A value of an unquantized tensor is too large for f16.
    #[error("parameter `{name}` holds {value}, which is too large for f16")]
    F16Overflow {
        /// The tensor.
        name: String,
        /// The value.
        value: f32,
    },
    /// The model lacks a file for writing calibration text.
    #[error("`{location}` has no `{file}`")]
    MissingFile {
        /// The checkpoint.
        location: String,
        /// The file.
        file: &'static str,
    },
    /// The output folder holds an unquantized model.
    #[error("`{}` holds an unquantized model, which would be lost", folder.display())]
    OutputExists {
        /// The folder.
        folder: PathBuf,
    },
    /// The folder holds another interrupted run.
    #[error("`{}` holds an interrupted run in which `{what}` was {was}; now it is {is}", folder.display())]
    OtherRun {
        /// The folder.
        folder: PathBuf,
        /// The field that differs.
        what: String,
        /// Its value in the interrupted run.
        was: String,
        /// Its value now.
        is: String,
    },
    /// The disk is too small for the output.
    #[error("`{}` has {:.1} GB free, but the output needs {:.1} GB", folder.display(), *available as f64 / 1e9, *needed as f64 / 1e9)]
    NoSpace {
        /// The folder.
        folder: PathBuf,
        /// Bytes.
        needed: u64,
        /// Bytes.
        available: u64,
    },
    /// [`Progress::is_cancelled`](crate::Progress::is_cancelled) returned true.
    #[error("interrupted")]
    Cancelled,
}

impl Error {
    /// The user's next step, if any.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::Format(error) => error.hint(),
            Error::Engine(error) => error.hint(),
            Error::AlreadyQuantized { .. } => {
                Some("quantize the unquantized model, or convert this one with weight-convert".into())
            }
            Error::UnequalParts { .. } => Some("change the pattern so that it matches all of them or none".into()),
            Error::RuleOfNothing { .. } => Some(
                "patterns are regular expressions, matched from the beginning of names like \
                 `model.layers.0.self_attn.q_proj`"
                    .into(),
            ),
            Error::TiedHead { .. } => {
                Some("leave --lm-head out; `--embedding gptq` quantizes table and head as one".into())
            }
            Error::NonFiniteActivations { .. } => Some(
                "check the model's weights: earlier ones are damaged, or the model exceeds the range of f32".into(),
            ),
            Error::MissingFile { .. } => Some("download the model again, or give calibration text with --calib".into()),
            Error::OutputExists { .. } => Some("choose another folder".into()),
            Error::Unpackable { module, .. } => {
                Some(format!("skip it with `--override '{module}:skip'`, or choose other bits for it"))
            }
            Error::OtherRun { .. } => Some(
                "repeat the interrupted command, choose another folder, or discard the interrupted run with --restart"
                    .into(),
            ),
            Error::NoSpace { .. } => Some("free some disk space, or choose another folder".into()),
            Error::F16Overflow { .. } | Error::Cancelled => None,
        }
    }
}
