//! GPTQ: quantizes a Hugging Face checkpoint to few bits per weight with little change of its outputs.
//!
//! [`gptq::quantize`] quantizes one matrix with the [`Hessian`] of its inputs. [`quantize_layers`] runs calibration text through
//! a model and quantizes all matrices, layer after layer. [`CheckpointWriter`] writes a checkpoint for AutoGPTQ, GPTQModel and
//! vLLM.
//!
//! ```
//! use gptq_quant::{Grid, HostSums, Options, TokenWeight, gptq::quantize};
//! use ndarray::Array2;
//!
//! let inputs = Array2::from_shape_fn((64, 32), |(t, k)| ((t * 31 + k * 17) % 23) as f32 / 11.0 - 1.0);
//! let mut sums = HostSums::new(32, TokenWeight::default().in_windows(64), false);
//! sums.add(inputs.as_slice().unwrap(), None);
//! let hessian = sums.finish().products;
//!
//! let weights = Array2::from_shape_fn((8, 32), |(n, k)| ((n * 7 + k * 5) % 19) as f32 / 9.0 - 1.0);
//! let grid = Grid { bits: 4, group_size: Some(32), sym: true };
//! let quantized = quantize(weights.view(), &hessian, None, &Options::new(grid));
//! assert!(quantized.relative_error(weights.view(), &hessian) < 0.01);
//! ```

#![cfg_attr(not(test), warn(clippy::print_stdout, clippy::print_stderr, clippy::disallowed_methods))]

pub mod calibrate;
mod error;
mod input;
mod output;
mod progress;
pub mod report;
pub mod run;
pub mod settings;
mod solve;
pub mod store;
mod walk;

pub use calibrate::Calibrate;
pub use error::{Error, Result};
pub use input::{
    self_text::{self, SelfText, write_windows},
    source::{check_weights, unquantized_config},
};
pub use output::checkpoint::{self, CheckpointWriter};
pub use progress::Progress;
pub use report::{
    Report,
    evaluate::{self, Evaluation, evaluate},
    matrix::MatrixReport,
};
pub use run::Run;
pub use settings::{Settings, quantized_params};
#[doc(hidden)]
pub use solve::gptq_py;
pub use solve::{
    gptq,
    grid::{Grid, GroupParams, ScaleRounding, ScaleSearch},
    head_inputs::HeadInputs,
    hessian::{Hessian, TokenWeight},
    host_sums::HostSums,
    options::Options,
    quantized::{Quantized, Solved},
};
pub use store::Store;
pub use walk::{observe, quantize_layers::quantize_layers, timings::Timings};
