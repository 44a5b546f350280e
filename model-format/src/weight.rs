//! [`Weight`]: a parameter as the engine loads it, unquantized or in groups of a format.

use half::f16;

use crate::quant::QuantizedMatrix;

/// One parameter as the engine loads it.
#[derive(Debug, Clone)]
pub enum Weight {
    /// Unquantized, widened to f32: norms, biases, and whole models for calibration and reference.
    F32 {
        /// Extents, outermost first.
        shape: Vec<usize>,
        /// Row-major values.
        data: Vec<f32>,
    },
    /// Unquantized, in f16.
    F16 {
        /// Extents, outermost first.
        shape: Vec<usize>,
        /// Row-major values.
        data: Vec<f16>,
    },
    /// In groups of a quantization format.
    Quantized(QuantizedMatrix),
}

impl Weight {
    /// Extents of the matrix or vector that this stands for, outermost first.
    pub fn shape(&self) -> Vec<usize> {
        match self {
            Weight::F32 { shape, .. } | Weight::F16 { shape, .. } => shape.clone(),
            Weight::Quantized(matrix) => vec![matrix.rows, matrix.cols],
        }
    }

    /// Matrices with the same inputs, one above the other. Rows are outputs, so this is exact.
    ///
    /// Panics when they are not all quantized in the same format, or all plain with the same inputs.
    pub fn concat_rows(parts: Vec<Weight>) -> Weight {
        let shapes: Vec<_> = parts.iter().map(Weight::shape).collect();
        assert!(shapes.iter().all(|shape| shape[1..] == shapes[0][1..]), "concat_rows: inputs of {shapes:?}");
        let mut shape = shapes[0].clone();
        shape[0] = shapes.iter().map(|shape| shape[0]).sum();
        let quantized = |part: &Weight| match part {
            Weight::Quantized(matrix) => Some(matrix.clone()),
            Weight::F32 { .. } | Weight::F16 { .. } => None,
        };
        if let Some(matrices) = parts.iter().map(quantized).collect() {
            return Weight::Quantized(QuantizedMatrix::concat_rows(matrices));
        }
        let half = |part: &Weight| match part {
            Weight::F16 { data, .. } => Some(data.clone()),
            Weight::F32 { .. } | Weight::Quantized(_) => None,
        };
        match parts.iter().map(half).collect::<Option<Vec<_>>>() {
            Some(halves) => Weight::F16 { shape, data: halves.concat() },
            None => Weight::F32 { shape, data: parts.into_iter().flat_map(Weight::into_f32).collect() },
        }
    }

    /// The values in f32, row-major, without a copy where they are f32 already.
    pub fn into_f32(self) -> Vec<f32> {
        match self {
            Weight::F32 { data, .. } => data,
            other => other.to_f32(),
        }
    }

    /// The values in f32, row-major.
    pub fn to_f32(&self) -> Vec<f32> {
        match self {
            Weight::F32 { data, .. } => data.clone(),
            Weight::F16 { data, .. } => data.iter().map(|v| v.to_f32()).collect(),
            Weight::Quantized(matrix) => matrix.dequantize(),
        }
    }
}
