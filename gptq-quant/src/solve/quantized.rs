//! [`Quantized`]: codes, scales and zeros of one matrix.

use faer::Mat;
use half::f16;
use model_format::gptq::GptqMatrix;
use ndarray::{Array2, ArrayView2, Axis, s};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{grid::Grid, options::Options, relative_error::relative_errors};

/// The method that found a matrix's codes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub enum Method {
    /// GPTQ. The damping is larger than the option if the Hessian needed more.
    Gptq {
        /// Damping as a share of the mean diagonal entry.
        damp_percent: f64,
    },
    /// Round-to-nearest, because no damping made the Hessian positive definite.
    RoundToNearest,
}

/// A quantized matrix.
#[derive(Debug, Clone, PartialEq)]
pub struct Quantized {
    /// The grid of the codes.
    pub grid: Grid,
    /// `[rows, cols]`.
    pub codes: Array2<u8>,
    /// `[rows, groups]`, exact in f16.
    pub scales: Array2<f32>,
    /// `[rows, groups]`.
    pub zeros: Array2<u8>,
    /// `[cols]`, the group of each input.
    pub g_idx: Vec<u32>,
    /// `tr(D H D^T)` of the error D with the damped Hessian H: the squared output error on the calibration tokens. Twice
    /// gptq.py's sum of losses. NaN after round-to-nearest.
    pub loss: f64,
    /// The method that found the codes.
    pub method: Method,
}

/// A solved matrix with the time its parts took.
pub struct Solved {
    /// The matrix.
    pub quantized: Quantized,
    /// Time until the factor of the inverse Hessian and all that follows from it was known.
    pub factoring: std::time::Duration,
}

impl Quantized {
    /// The dequantized values `[rows, cols]`.
    pub fn dequantize(&self) -> Array2<f32> {
        let mut values = Array2::zeros(self.codes.dim());
        values.axis_iter_mut(Axis(0)).into_par_iter().enumerate().for_each(|(row, mut values)| {
            values.iter_mut().enumerate().for_each(|(col, value)| *value = self.value((row, col)));
        });
        values
    }

    /// The dequantized values of one row.
    pub(crate) fn row(&self, row: usize) -> Vec<f32> {
        (0..self.codes.ncols()).map(|col| self.value((row, col))).collect()
    }

    /// The dequantized values of these rows.
    pub(crate) fn rows(&self, rows: &[usize]) -> Array2<f32> {
        Array2::from_shape_fn((rows.len(), self.codes.ncols()), |(row, col)| self.value((rows[row], col)))
    }

    /// Rounds the scales for checkpoints, unless that was done before error feedback.
    pub(crate) fn round_scales(&mut self, options: &Options) {
        if !options.scales_first {
            let round = |scale: f32| self.grid.round_scale(f64::from(scale), options.values_in_f16) as f32;
            self.scales.mapv_inplace(round);
        }
    }

    fn value(&self, (row, col): (usize, usize)) -> f32 {
        let group = self.g_idx[col] as usize;
        let code = f32::from(self.codes[(row, col)]) - f32::from(self.zeros[(row, group)]);
        code * self.scales[(row, group)]
    }

    /// `tr(D H D^T) / tr(W H W^T)`: the squared output error on the calibration tokens, relative to the squared outputs. Zero if
    /// all outputs are zero.
    pub fn relative_error(&self, weights: ArrayView2<'_, f32>, hessian: &Mat<f64>) -> f64 {
        let [error] = relative_errors(weights, [&self.dequantize()], hessian);
        error
    }

    /// The rows `start .. start + rows` as a matrix of a GPTQ checkpoint.
    pub fn rows_to_checkpoint(&self, start: usize, rows: usize) -> GptqMatrix {
        let range = s![start..start + rows, ..];
        GptqMatrix {
            rows,
            cols: self.codes.ncols(),
            codes: self.codes.slice(range).iter().copied().collect(),
            scales: self.scales.slice(range).iter().map(|&s| f16::from_f32(s).to_f32()).collect(),
            zeros: self.zeros.slice(range).iter().copied().collect(),
            g_idx: self.g_idx.clone(),
        }
    }
}
