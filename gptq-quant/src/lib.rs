//! GPTQ: quantizes a Hugging Face checkpoint to few bits per weight with as little change to its outputs as may be.
//!
//! [`gptq::quantize`] does one matrix with the [`Hessian`] of its inputs; [`pipeline::quantize_layers`] runs calibration
//! text through a model, layer after layer, and does them all; [`checkpoint`] writes what AutoGPTQ, GPTQModel and vLLM
//! read.
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
pub mod checkpoint;
pub mod cholesky;
mod ends;
mod error;
mod estimate;
pub mod evaluate;
mod finishing;
pub mod gptq;
mod grid;
mod head_inputs;
mod hessian;
pub mod observe;
mod on_device;
mod output;
pub mod pipeline;
mod refine;
pub mod report;
pub mod run;
pub mod self_text;
pub mod settings;
mod speed;
pub mod store;
mod streams;
mod work;

pub use calibrate::Calibrate;
pub use checkpoint::CheckpointWriter;
pub use error::{Error, Result};
pub use estimate::{Estimate, Timings};
pub use evaluate::{Evaluation, evaluate};
pub use gptq::{Options, Quantized};
pub use grid::{Grid, GroupParams, ScaleRounding, ScaleSearch};
pub use head_inputs::HeadInputs;
pub use hessian::{Hessian, HostSums, TokenWeight};
pub use pipeline::{Progress, check_weights, quantize_layers};
pub use report::{Report, matrix::MatrixReport};
pub use run::Run;
pub use self_text::{SelfText, write_windows};
pub use settings::{Settings, quantized_params};
pub use store::Store;
