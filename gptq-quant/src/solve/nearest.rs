//! Scale and zero of a group, and round-to-nearest, the baseline without error feedback.

use ndarray::{Array2, ArrayView2, Axis};
use rayon::prelude::*;

use super::{
    dialect::Dialect,
    grid::{GroupParams, ScaleRounding, ScaleSearch},
    options::Options,
    quantized::{Method, Quantized},
};

/// Rounds each weight to the nearest value. Scales minimize the squared weight error; with `importance` `[cols]`, the error of
/// each column counts that many times.
pub fn round_to_nearest(weights: ArrayView2<'_, f32>, importance: Option<&[f64]>, options: &Options) -> Quantized {
    nearest(weights, importance, options, Dialect::Own)
}

pub(super) fn nearest(
    weights: ArrayView2<'_, f32>,
    importance: Option<&[f64]>,
    options: &Options,
    dialect: Dialect,
) -> Quantized {
    let (rows, cols) = weights.dim();
    let (group_len, groups) = (options.grid.group_len(cols), options.grid.groups(cols));
    let importance: Vec<f32> = importance.map_or(vec![1.0; cols], |i| i.iter().map(|&v| v as f32).collect());
    let mut codes = Array2::<u8>::zeros((rows, cols));
    let mut scales = Array2::<f32>::zeros((rows, groups));
    let mut zeros = Array2::<u8>::zeros((rows, groups));
    let rows = weights.axis_iter(Axis(0)).into_par_iter().zip(codes.axis_iter_mut(Axis(0)));
    let rows = rows.zip(scales.axis_iter_mut(Axis(0))).zip(zeros.axis_iter_mut(Axis(0)));
    rows.for_each(|(((weights, mut codes), mut scales), mut zeros)| {
        let weights: Vec<f64> = weights.iter().map(|&w| f64::from(w)).collect();
        for group in 0..groups {
            let range = group * group_len..((group + 1) * group_len).min(cols);
            let params = find_params(options, dialect, &weights[range.clone()], &importance[range.clone()]);
            scales[group] = params.scale as f32;
            zeros[group] = params.zero as u8;
            for col in range {
                codes[col] = options.grid.code(weights[col], params);
            }
        }
    });
    let g_idx = (0..cols).map(|k| (k / group_len) as u32).collect();
    Quantized { grid: options.grid, codes, scales, zeros, g_idx, loss: f64::NAN, method: Method::RoundToNearest }
}

/// Scale and zero of one group, by the options' search. `importance`: the Hessian's diagonal entry of each weight's input.
pub(crate) fn find_params(options: &Options, dialect: Dialect, weights: &[f64], importance: &[f32]) -> GroupParams {
    let grid = options.grid;
    let rounding = match (options.scales_first, options.values_in_f16) {
        (false, _) => ScaleRounding::Later,
        (true, false) => ScaleRounding::F16,
        (true, true) => ScaleRounding::CoarseF16,
    };
    let of_range = |mse: bool| match dialect {
        Dialect::Own => grid.storable(grid.range_params(weights, mse), rounding),
        Dialect::GptqPy => grid.range_params_in(dialect, weights, mse),
    };
    match options.scale_search {
        ScaleSearch::Range => of_range(false),
        ScaleSearch::Mse => of_range(true),
        ScaleSearch::Hessian => {
            let weights: Vec<f32> = weights.iter().map(|&w| w as f32).collect();
            grid.search_params(&weights, importance, options.signed_scales, rounding)
        }
    }
}
