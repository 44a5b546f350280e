//! A model on disk: what its files are called, what they hold, and what that means.
//!
//! This crate knows the configuration of a decoder ([`DecoderConfig`]), the complete list of its parameters
//! ([`params()`]), how each quantization format lays weights out in bytes ([`quant`]), and the files of the two worlds we
//! stand between: a Hugging Face checkpoint ([`Checkpoint`], float or [`gptq`]) and an MLC folder ([`TensorCache`],
//! [`ChatConfig`]). It knows nothing of GPUs, tokenizers, threads or the network.
//!
//! ```
//! use model_format::{Architecture, quant::QuantFormat};
//!
//! let format = QuantFormat::by_name("q4f16_1").unwrap();
//! let matrix = format.quantize(1, 32, &[0.875; 32]);
//! assert_eq!(matrix.dequantize()[0], 0.875);
//! assert!(Architecture::by_model_type("llama").is_ok());
//! ```

#![cfg_attr(not(test), warn(clippy::print_stdout, clippy::print_stderr, clippy::disallowed_methods))]

pub mod arch;
pub mod caught;
pub mod chat_config;
pub mod checkpoint;
pub mod conv_template;
pub mod decoder_config;
pub mod error;
pub mod files;
pub mod gptq;
pub mod params;
pub mod python_json;
pub mod quant;
pub mod rope;
pub mod staging;
pub mod steps;
pub mod tensor;
pub mod tensor_cache;

pub use arch::Architecture;
pub use chat_config::ChatConfig;
pub use checkpoint::{Checkpoint, SafetensorsCheckpoint, TensorInfo};
pub use conv_template::ConvTemplate;
pub use decoder_config::DecoderConfig;
pub use error::{Error, Result};
pub use files::{DirFiles, FileBytes, ModelFiles};
pub use params::{Param, Role, params};
pub use python_json::PythonJson;
pub use quant::{QuantFormat, QuantizedMatrix};
pub use tensor::{Dtype, HostTensor, Weight};
pub use tensor_cache::TensorCache;
