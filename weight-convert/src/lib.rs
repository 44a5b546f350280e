//! From a checkpoint to an MLC folder: the weights in a quantization format, and the configuration that goes with them.
//!
//! [`convert_weight`] and [`gen_config`] are the two halves, with the bytes that mlc_llm's commands of the same names
//! write; [`convert`] does both. A float checkpoint is rounded to nearest; a GPTQ checkpoint keeps its codes, without loss
//! (see [`GptqMatrix::to_format`](model_format::gptq::GptqMatrix::to_format)). [`verify`] holds a folder against its
//! checkpoint, [`inspect`] says what is in one.
//!
//! Everything that headers can tell is checked before the first byte is written. What is written appears under temporary
//! names and is renamed at the end, the indices last, so a folder that looks whole is whole. A conversion that was ended in
//! the middle is taken up again by the same call, and ends in the same bytes.
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
    ConvertOptions, FileReport, RefitReport, Report, WeightOptions, WeightsReport, convert, convert_weight, preview,
};
pub use error::{Error, Result};
pub use gen_config::{ConfigOptions, ConfigReport, ConfigSource, gen_config};
pub use inspect::{Contents, inspect};
pub use output::check_output;
pub use plan::{Plan, PlannedParam, SourceKind};
pub use progress::Progress;
pub use verify::{ParamCheck, Verification, verify};
