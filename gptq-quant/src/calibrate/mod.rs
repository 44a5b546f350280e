//! Summing Hessians and solving matrices on the device that holds the activations.

mod cpu;
mod gpu;
mod gpu_solver;
mod operations;

pub use gpu::GpuSums;
pub use gpu_solver::{GpuHessian, PIECE_BYTES};
pub use operations::{Calibrate, DeviceFacts, InputPair, SumShape};
