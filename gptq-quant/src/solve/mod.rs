//! Solving one matrix: the Hessian of its inputs, the grid of its values, GPTQ and the refinement after it.

pub mod cholesky;
pub mod dialect;
pub mod gptq;
pub mod gptq_py;
pub mod grid;
pub mod head_inputs;
pub mod hessian;
pub mod host_sums;
pub mod nearest;
pub mod options;
pub mod prepared;
pub mod quantized;
pub mod refine;
pub mod relative_error;
