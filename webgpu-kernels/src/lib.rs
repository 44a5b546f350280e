//! WGSL kernels, their CPU references, and the GPU runtime that records them.
//!
//! **How to read a kernel folder**, for example [`rms_norm`]: `mod.rs` has the formula with shapes, and the typed wrapper whose `record`
//! selects a variant. `rms_norm.wgsl` is the shader, with a shape on every binding. `reference.rs` computes the same in plain loops. The
//! folder's [`Kernel`] record is in [`KERNELS`]: tests check its cases against the reference, and benches time them.
//!
//! ```no_run
//! use webgpu_kernels::{gpu::{self, Gpu, OpenOptions, Recorder, Selection}, rms_norm::RmsNorm};
//!
//! # fn main() -> webgpu_kernels::Result<()> {
//! let gpu = gpu::block_on(Gpu::open(&Selection::Auto, OpenOptions::default()))?;
//! let (x, weight) = (gpu.upload(&[1.0f32, 2.0])?, gpu.upload(&[1.0f32, 1.0])?);
//! let mut recorder = Recorder::new(&gpu);
//! let y = recorder.temporary(2);
//! RmsNorm { rows: 1, cols: 2, eps: 1e-5 }.record(&mut recorder, &x, &weight, &y);
//! let values: Vec<f32> = gpu::block_on(recorder.read(&y)?)?;
//! # Ok(()) }
//! ```

#![cfg_attr(not(test), warn(clippy::print_stdout, clippy::print_stderr, clippy::disallowed_methods))]

pub mod add;
pub mod argmax;
pub mod attention;
pub mod case_check;
mod cases;
pub mod copy;
pub mod cross_entropy;
pub mod embedding;
pub mod error;
pub mod gather_tokens;
pub mod gemm;
pub mod gemv;
pub mod gemv_chain;
pub mod glu;
pub mod gptq;
pub mod gpu;
pub mod gram;
pub mod kernel;
pub mod kl_divergence;
pub mod kv;
pub mod matrix;
pub mod norm_heads;
pub mod rms_norm;
pub mod rope;
pub mod sample;
pub mod select_rows;
pub mod selftest;
pub mod slice;
pub mod soft_cap;
mod source;
pub mod tuning;

pub use error::{Error, Result};
pub use gpu::Gpu;
pub use kernel::{Case, CaseSet, Kernel, Variant, WeightFormat};
pub use kv::{KvDtype, KvPool, PAGE, RowSpan, Rows};
pub use matrix::{Factor, Matrix};

/// All kernels.
pub const KERNELS: &[&Kernel] = &[
    &embedding::KERNEL,
    &rms_norm::KERNEL,
    &rms_norm::ADD_KERNEL,
    &gemv::KERNEL,
    &gemv::ADD_KERNEL,
    &gemv::SCALED_KERNEL,
    &gemv::ROPE_KERNEL,
    &gemv_chain::KERNEL,
    &gemv_chain::ATTENTION_KERNEL,
    &gemv_chain::START_KERNEL,
    &gemm::KERNEL,
    &gemm::JOIN_KERNEL,
    &gemm::COOPERATIVE_KERNEL,
    &gemm::FEW_KERNEL,
    &gemm::NARROW_KERNEL,
    &gemm::LANE_ROWS_KERNEL,
    &norm_heads::KERNEL,
    &rope::KERNEL,
    &attention::TILE_KERNEL,
    &attention::DECODE_KERNEL,
    &attention::TEAMS_KERNEL,
    &attention::REDUCE_KERNEL,
    &glu::KERNEL,
    &add::KERNEL,
    &soft_cap::KERNEL,
    &copy::KERNEL,
    &select_rows::KERNEL,
    &argmax::KERNEL,
    &argmax::JOIN_KERNEL,
    &sample::ADJUST_KERNEL,
    &sample::SELECT_KERNEL,
    &sample::WEIGH_KERNEL,
    &sample::DRAW_KERNEL,
    &sample::COUNT_KERNEL,
    &gather_tokens::KERNEL,
    &cross_entropy::KERNEL,
    &kl_divergence::KERNEL,
    &gram::KERNEL,
    &gram::WEIGHT_KERNEL,
    &gptq::COLUMNS_KERNEL,
    &gptq::RANK_UPDATE_KERNEL,
    &gptq::SCALES_KERNEL,
    &gptq::CODES_KERNEL,
    &gptq::ERRORS_KERNEL,
    &gptq::ROW_DOTS_KERNEL,
    &gptq::ARRANGE_KERNEL,
    &gptq::DIAGONAL_KERNEL,
];

/// Every kernel with several variants.
pub const TUNABLES: &[&tuning::Tunable] = &[
    &gemv::TUNABLE,
    &gemv::ADD_TUNABLE,
    &gemv::SCALED_TUNABLE,
    &gemv::ROPE_TUNABLE,
    &gemv_chain::TUNABLE,
    &gemm::TUNABLE,
    &gemm::SPLITS_TUNABLE,
    &gemm::COOPERATIVE_TUNABLE,
    &gemm::FEW_TUNABLE,
    &attention::DECODE_TUNABLE,
    &attention::TILE_TUNABLE,
];
