//! [`MatrixReport`]: method, errors and time of one quantized matrix.

use std::time::Duration;

use faer::Mat;
use model_format::Param;
use ndarray::{Array2, ArrayView2, Axis};
use serde::{Deserialize, Serialize};

use crate::solve::{
    nearest::round_to_nearest,
    options::Options,
    quantized::{Method, Quantized},
    relative_error::relative_errors,
};

/// Most rows for error measurement, evenly spaced. All rows would take a fifth of the time of finding the codes, and a larger
/// share if a GPU finds them.
const SAMPLED_ROWS: usize = 256;

/// Method, errors and time of one quantized matrix.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MatrixReport {
    /// Layer index; `None` for the embedding table and the head.
    pub layer: Option<usize>,
    /// MLC's name of the module, for example `model.layers.0.self_attn.qkv_proj`.
    pub module: String,
    /// Outputs and inputs.
    pub shape: [usize; 2],
    /// Bits per code.
    pub bits: u32,
    /// Inputs per scale; `None` for whole rows.
    pub group_size: Option<usize>,
    /// True if the zero is the middle code.
    pub sym: bool,
    /// Squared output error on the calibration text, relative to the squared outputs. Uses the inputs that the quantized layers
    /// before produce, and at most 256 rows.
    pub relative_error: f64,
    /// [`MatrixReport::relative_error`] of round-to-nearest on the same grid, with the best scale for the weights of each group.
    pub nearest_error: f64,
    /// GPTQ's objective, [`Quantized::loss`]. `None` after round-to-nearest.
    pub loss: Option<f64>,
    /// The method that found the codes.
    pub method: Method,
    /// The smallest and the largest absolute scale.
    pub scales: [f32; 2],
    /// Time of the solution, without the forward pass.
    pub elapsed: Duration,
}

impl MatrixReport {
    /// The report of `param`, quantized with `options` and `hessian`. `sample`: rows of its float weights. The caller sets
    /// [`MatrixReport::elapsed`].
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

    /// Bits of codes, scales and zeros per weight.
    pub fn bits_per_weight(&self) -> f64 {
        let [_, cols] = self.shape;
        let groups = cols.div_ceil(self.group_size.unwrap_or(cols)) as f64;
        f64::from(self.bits) + groups / cols as f64 * (16.0 + if self.sym { 0.0 } else { f64::from(self.bits) })
    }
}

/// Rows of a float matrix for error measurement.
pub struct Sample {
    rows: Vec<usize>,
    /// `[rows.len(), cols]`.
    weights: Array2<f32>,
}

impl Sample {
    /// Samples `weights` `[rows, cols]`.
    pub fn of(weights: ArrayView2<'_, f32>) -> Sample {
        let count = weights.nrows();
        let rows: Vec<usize> = (0..count).step_by(count.div_ceil(SAMPLED_ROWS).max(1)).collect();
        Sample { weights: weights.select(Axis(0), &rows), rows }
    }
}

/// Relative errors of these codes, and of round-to-nearest on the same grid.
fn errors(sample: &Sample, quantized: &Quantized, hessian: &Mat<f64>, options: &Options) -> [f64; 2] {
    let values = quantized.rows(&sample.rows);
    let nearest = round_to_nearest(sample.weights.view(), None, options).dequantize();
    relative_errors(sample.weights.view(), [&values, &nearest], hessian)
}
