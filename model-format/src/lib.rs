//! Reads and writes a model's files: names, layouts and meaning.
//!
//! - [`DecoderConfig`]: the configuration of a decoder. [`params()`] lists all its parameters.
//! - [`quant`]: the byte layout of each quantization format.
//! - [`Checkpoint`]: a Hugging Face checkpoint, in floating point or quantized by GPTQ ([`gptq`]).
//! - [`TensorCache`] and [`ChatConfig`]: the index and the configuration of an MLC folder.
//!
//! This crate has no knowledge of GPUs, tokenizers, threads or the network.
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
pub mod config_json;
pub mod conv_template;
pub mod decoder_config;
pub mod error;
pub mod files;
pub mod gptq;
pub mod params;
pub mod python_json;
pub mod quant;
pub mod role;
pub mod rope;
pub mod rope_scaling;
pub mod staging;
pub mod steps;
pub mod tensor;
pub mod tensor_cache;
pub mod weight;

pub use arch::Architecture;
pub use chat_config::ChatConfig;
pub use checkpoint::{Checkpoint, SafetensorsCheckpoint, TensorInfo};
pub use conv_template::ConvTemplate;
pub use decoder_config::DecoderConfig;
pub use error::{Error, Result};
pub use files::{DirFiles, FileBytes, ModelFiles};
pub use params::{Param, params};
pub use python_json::PythonJson;
pub use quant::{QuantFormat, QuantizedMatrix};
pub use role::Role;
pub use tensor::{Dtype, HostTensor};
pub use tensor_cache::TensorCache;
pub use weight::Weight;
