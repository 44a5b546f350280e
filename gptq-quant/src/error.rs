//! What can go wrong while a model is quantized, each with what to do about it.

use std::path::PathBuf;

/// The result of quantizing a model.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong while a model is quantized.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The model's files.
    #[error(transparent)]
    Format(#[from] model_format::Error),
    /// The forward pass, the tokenizer or the chat template.
    #[error(transparent)]
    Engine(#[from] infer_core::Error),
    /// The checkpoint is quantized already.
    #[error("`{location}` is quantized already")]
    AlreadyQuantized {
        /// The checkpoint.
        location: String,
    },
    /// A matrix has a shape that the packed layout cannot hold.
    #[error("`{module}` is [{rows}, {cols}], and packed codes need multiples of {multiple}")]
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
    /// Matrices that are quantized as one are to be quantized in different ways.
    #[error("`{}` are quantized as one matrix, and the rules say different things of them", modules.join("`, `"))]
    UnequalParts {
        /// Their names.
        modules: Vec<String>,
    },
    /// A rule is about no matrix of the model.
    #[error("the rule `{rule}` matches no matrix of the model")]
    RuleOfNothing {
        /// The rule.
        rule: String,
    },
    /// The head is to be quantized, and there is none.
    #[error("`{location}` has no head of its own: its embedding table is the head")]
    TiedHead {
        /// The checkpoint.
        location: String,
    },
    /// The model's activations became infinite or NaN on the calibration text.
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
    /// The model lacks a file that is needed to generate calibration text.
    #[error("`{location}` has no `{file}`")]
    MissingFile {
        /// The checkpoint.
        location: String,
        /// The file.
        file: &'static str,
    },
    /// The output folder holds a model that is not quantized.
    #[error("`{}` holds a model that is not quantized, and would be lost", folder.display())]
    OutputExists {
        /// The folder.
        folder: PathBuf,
    },
    /// The folder holds what another run has left.
    #[error("`{}` holds an interrupted run in which `{what}` was {was}; now it is {is}", folder.display())]
    OtherRun {
        /// The folder.
        folder: PathBuf,
        /// What differs.
        what: String,
        /// As it was.
        was: String,
        /// As it is.
        is: String,
    },
    /// The disk is too small for the result.
    #[error("`{}` has room for {:.1} GB, and this needs {:.1} GB", folder.display(), *available as f64 / 1e9, *needed as f64 / 1e9)]
    NoSpace {
        /// The folder.
        folder: PathBuf,
        /// Bytes.
        needed: u64,
        /// Bytes.
        available: u64,
    },
    /// Whoever watches the progress asked to stop.
    #[error("interrupted")]
    Cancelled,
}

impl Error {
    /// What the user can do about it, if anything.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::Format(error) => error.hint(),
            Error::Engine(error) => error.hint(),
            Error::AlreadyQuantized { .. } => {
                Some("quantize the unquantized model, or convert this one with weight-convert".into())
            }
            Error::UnequalParts { .. } => Some("write the pattern so that it matches all of them or none".into()),
            Error::RuleOfNothing { .. } => Some(
                "patterns are regular expressions, matched from the beginning of names such as \
                 `model.layers.0.self_attn.q_proj`"
                    .into(),
            ),
            Error::TiedHead { .. } => {
                Some("leave --lm-head out; `--embedding gptq` quantizes table and head as one".into())
            }
            Error::NonFiniteActivations { .. } => {
                Some("the weights before it are damaged, or the model needs a wider range than f32 has".into())
            }
            Error::MissingFile { .. } => Some("download the model again, or give calibration text with --calib".into()),
            Error::OutputExists { .. } => Some("choose another folder".into()),
            Error::Unpackable { module, .. } => {
                Some(format!("leave it as it is with `--override '{module}:skip'`, or choose other bits for it"))
            }
            Error::OtherRun { .. } => Some(
                "repeat the command that was interrupted, choose another folder, or begin anew with --restart".into(),
            ),
            Error::NoSpace { .. } => Some("free some disk space, or choose another folder".into()),
            Error::F16Overflow { .. } | Error::Cancelled => None,
        }
    }
}
