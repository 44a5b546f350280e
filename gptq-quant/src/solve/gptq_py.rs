//! GPTQ exactly as the authors' gptq.py computes it, to compare with its recorded results. For tests only.
//!
//! It differs from [`gptq::quantize`](super::gptq::quantize) in five points: scales are not rounded to f16; a symmetric group
//! without negative weights gets half the scale it needs; a group that begins inside a block takes its scale from the weights
//! before the block's error feedback; whole-row scales include dead inputs; and dead inputs count as 1 in the mean diagonal.

use faer::Mat;
use ndarray::ArrayView2;

use super::{
    dialect::Dialect,
    gptq::solve,
    grid::{Grid, GroupParams},
    options::Options,
    quantized::Quantized,
};

/// Quantizes `weights` `[rows, cols]` as gptq.py does, with `hessian` `[cols, cols]`.
pub fn quantize(weights: ArrayView2<'_, f32>, hessian: &Mat<f64>, options: &Options) -> Quantized {
    solve(weights, hessian, [None, None], options, Dialect::GptqPy).quantized
}

/// Scale and zero by the range of `weights`, as gptq.py's `find_params` chooses them. With `mse` by its search.
pub fn range_params(grid: Grid, weights: &[f64], mse: bool) -> GroupParams {
    grid.range_params_in(Dialect::GptqPy, weights, mse)
}
