//! [`MatrixReport`]: what became of one matrix.

use std::time::Duration;

use faer::Mat;
use model_format::Param;
use ndarray::{Array2, ArrayView2, Axis};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{
    Options,
    gptq::{Method, Quantized, round_to_nearest},
};

/// Rows that errors are taken on, at the most, evenly spaced: all would take a fifth of the time that finding the codes
/// does, and more on a device.
const SAMPLED_ROWS: usize = 256;

/// Rows that a thread does at a time: so few that the sampled ones are enough for sixteen.
const PIECE_ROWS: usize = 8;

/// What became of one matrix.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MatrixReport {
    /// Layer index; `None` for the embedding table and the head.
    pub layer: Option<usize>,
    /// MLC's name of the module: `model.layers.0.self_attn.qkv_proj`.
    pub module: String,
    /// Outputs and inputs.
    pub shape: [usize; 2],
    /// Bits per code.
    pub bits: u32,
    /// Inputs per scale; `None` for the whole row.
    pub group_size: Option<usize>,
    /// Whether the zero is fixed in the middle of the codes.
    pub sym: bool,
    /// Squared error of the outputs on the calibration text, as a share of their own square: with the inputs that the
    /// quantized layers before give, on at most 256 of the rows.
    pub relative_error: f64,
    /// The same of round-to-nearest on the same grid, each scale the best for its weights.
    pub nearest_error: f64,
    /// What GPTQ made small: [`Quantized::loss`]. `None` after round-to-nearest.
    pub loss: Option<f64>,
    /// How the codes were found.
    pub method: Method,
    /// The smallest and the largest scale, without signs.
    pub scales: [f32; 2],
    /// Time that the solution took, without the forward pass.
    pub elapsed: Duration,
}

impl MatrixReport {
    /// Of `param`, quantized with `options` for inputs behind `hessian`; `sample` is of its weights. How long that took is to be
    /// set.
    pub fn new(
        param: &Param,
        sample: &Sample,
        quantized: &Quantized,
        hessian: &Mat<f64>,
        options: &Options,
    ) -> MatrixReport {
        let [relative_error, nearest_error] = errors(sample, quantized, hessian, options);
        let sizes = || quantized.scales.iter().map(|scale| scale.abs());
        MatrixReport {
            layer: param.role.layer(),
            module: param.name.strip_suffix(".weight").unwrap_or(&param.name).to_owned(),
            shape: [quantized.codes.nrows(), quantized.codes.ncols()],
            bits: quantized.grid.bits,
            group_size: quantized.grid.group_size,
            sym: quantized.grid.sym,
            relative_error,
            nearest_error,
            loss: Some(quantized.loss).filter(|loss| loss.is_finite()),
            method: quantized.method,
            scales: [sizes().fold(f32::INFINITY, f32::min), sizes().fold(0.0, f32::max)],
            elapsed: Duration::ZERO,
        }
    }

    /// Bits that its codes, scales and zeros take, per weight.
    pub fn bits_per_weight(&self) -> f64 {
        let [_, cols] = self.shape;
        let groups = cols.div_ceil(self.group_size.unwrap_or(cols)) as f64;
        f64::from(self.bits) + groups / cols as f64 * (16.0 + if self.sym { 0.0 } else { f64::from(self.bits) })
    }
}

/// The rows of a matrix that errors are taken on.
pub struct Sample {
    rows: Vec<usize>,
    /// `[rows.len(), cols]`.
    weights: Array2<f32>,
}

impl Sample {
    /// Of `weights` `[rows, cols]`.
    pub fn of(weights: ArrayView2<'_, f32>) -> Sample {
        let count = weights.nrows();
        let rows: Vec<usize> = (0..count).step_by(count.div_ceil(SAMPLED_ROWS).max(1)).collect();
        Sample { weights: weights.select(Axis(0), &rows), rows }
    }
}

/// Errors of the outputs as a share of their square: of these codes, and of round-to-nearest on the same grid.
fn errors(sample: &Sample, quantized: &Quantized, hessian: &Mat<f64>, options: &Options) -> [f64; 2] {
    let values = quantized.rows(&sample.rows);
    let nearest = round_to_nearest(sample.weights.view(), None, options).dequantize();
    relative_errors(sample.weights.view(), [&values, &nearest], hessian)
}

/// `tr(D H D^T) / tr(W H W^T)` of the error D that each of `values` `[rows, cols]` is from `weights`. Zero where the
/// outputs are.
pub(crate) fn relative_errors<const N: usize>(
    weights: ArrayView2<'_, f32>,
    values: [&Array2<f32>; N],
    hessian: &Mat<f64>,
) -> [f64; N] {
    let n = hessian.nrows();
    // Symmetric, so that its columns are rows.
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
            let weights = weights.slice(ndarray::s![rows.clone(), ..]);
            // One product for all of them: each reads the whole Hessian.
            let mut all = Vec::with_capacity((N + 1) * weights.len());
            for values in values {
                let values = values.slice(ndarray::s![rows.clone(), ..]);
                all.extend(std::iter::zip(weights, values).map(|(w, v)| w - v));
            }
            all.extend(weights);
            let count = rows.len();
            let all = Array2::from_shape_vec(((N + 1) * count, n), all).expect("whole rows");
            let products = all.dot(&hessian);
            let square = |part: usize| -> f64 {
                let part = ndarray::s![part * count..(part + 1) * count, ..];
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
