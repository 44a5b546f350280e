//! Converts a checkpoint to an MLC folder: weights in a quantization format, configuration and tokenizer.
//!
//! [`convert_weight`] and [`gen_config`] are the two halves, with the same bytes as mlc_llm's commands of these names;
//! [`convert`] does both. A float checkpoint is rounded to nearest. A GPTQ checkpoint keeps its codes without loss (see
//! [`GptqMatrix::to_format`](model_format::gptq::GptqMatrix::to_format)). [`verify`] compares a folder with its checkpoint;
//! [`inspect`] lists the content of a folder.
//!
//! All facts in headers are checked before the first byte is written. Files are written under temporary names and renamed at the
//! end, the indices last, so a folder with an index is complete. The same call resumes an interrupted conversion and produces the
//! same bytes.
//!
//! ```no_run
//! use model_format::{SafetensorsCheckpoint, quant::QuantFormat};
//! use weight_convert::{ConvertOptions, convert};
//! use std::path::Path;
//!
//! let checkpoint = SafetensorsCheckpoint::open(Path::new("SmolLM2-135M-Instruct"))?;
//! let format = QuantFormat::by_name("q4f16_1")?;
//! let report = convert(&checkpoint, format, &ConvertOptions::default(), Path::new("out"), &mut ())?;
//! println!("{:.2} bits per weight", report.weights.bits_per_param);
//! # Ok::<(), weight_convert::Error>(())
//! ```

#![cfg_attr(not(test), warn(clippy::print_stdout, clippy::print_stderr, clippy::disallowed_methods))]

mod convert;
mod encode;
mod error;
mod fingerprint;
mod gen_config;
mod inspect;
mod model_config;
mod output;
mod plan;
mod progress;
mod shards;
mod tokenizer_info;
mod verify;

pub use convert::{
    ConvertOptions, RefitReport, Report, WeightOptions, WeightsReport, convert, convert_weight, preview,
};
pub use error::{Error, Result};
pub use gen_config::{ConfigReport, ConfigSource, gen_config};
pub use inspect::{Contents, inspect};
pub use model_config::ConfigOptions;
pub use output::{FileReport, check_output};
pub use plan::{Plan, PlannedParam, SourceKind};
pub use progress::Progress;
pub use verify::{ParamCheck, Verification, verify};
