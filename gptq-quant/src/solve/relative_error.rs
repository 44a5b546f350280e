//! [`relative_errors`]: output errors of quantized matrices on the calibration tokens.

use faer::Mat;
use ndarray::{Array2, ArrayView2, s};
use rayon::prelude::*;

/// Rows per task: few enough that 256 sampled rows keep 16 threads busy.
const PIECE_ROWS: usize = 8;

/// `tr(D H D^T) / tr(W H W^T)` for each of `values` `[rows, cols]`, with the error D = W - V. Zero if all outputs are zero.
pub fn relative_errors<const N: usize>(
    weights: ArrayView2<'_, f32>,
    values: [&Array2<f32>; N],
    hessian: &Mat<f64>,
) -> [f64; N] {
    let n = hessian.nrows();
    // H is symmetric, so its columns are its rows.
    let mut columns = vec![0f32; n * n];
    columns.par_chunks_exact_mut(n.max(1)).enumerate().for_each(|(j, column)| {
        column.iter_mut().enumerate().for_each(|(i, value)| *value = hessian[(i, j)] as f32);
    });
    let hessian = Array2::from_shape_vec((n, n), columns).expect("a square");
    let starts: Vec<usize> = (0..weights.nrows()).step_by(PIECE_ROWS).collect();
    let pieces: Vec<([f64; N], f64)> = starts
        .into_par_iter()
        .map(|start| {
            let rows = start..(start + PIECE_ROWS).min(weights.nrows());
            let weights = weights.slice(s![rows.clone(), ..]);
            // One joined product, because each product reads the whole Hessian.
            let mut all = Vec::with_capacity((N + 1) * weights.len());
            for values in values {
                let values = values.slice(s![rows.clone(), ..]);
                all.extend(std::iter::zip(weights, values).map(|(w, v)| w - v));
            }
            all.extend(weights);
            let count = rows.len();
            let all = Array2::from_shape_vec(((N + 1) * count, n), all).expect("whole rows");
            let products = all.dot(&hessian);
            let square = |part: usize| -> f64 {
                let part = s![part * count..(part + 1) * count, ..];
                let pairs = std::iter::zip(all.slice(part), products.slice(part));
                pairs.map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
            };
            (std::array::from_fn(square), square(N))
        })
        .collect();
    let whole: f64 = pieces.iter().map(|(_, whole)| whole).sum();
    std::array::from_fn(|i| {
        let error: f64 = pieces.iter().map(|(errors, _)| errors[i]).sum();
        if whole > 0.0 { error / whole } else { 0.0 }
    })
}
