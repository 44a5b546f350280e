//! [`Weight`]: a parameter in the form that the engine loads, unquantized or quantized.

use half::f16;

use crate::quant::QuantizedMatrix;

/// A parameter in the form that the engine loads.
#[derive(Debug, Clone)]
pub enum Weight {
    /// Unquantized, converted to f32: norms, biases, and whole models for calibration and as reference.
    F32 {
        /// Dimensions, outermost first.
        shape: Vec<usize>,
        /// Row-major values.
        data: Vec<f32>,
    },
    /// Unquantized, in f16.
    F16 {
        /// Dimensions, outermost first.
        shape: Vec<usize>,
        /// Row-major values.
        data: Vec<f16>,
    },
    /// Quantized in groups.
    Quantized(QuantizedMatrix),
}

impl Weight {
    /// Dimensions of the matrix or vector, outermost first.
    pub fn shape(&self) -> Vec<usize> {
        match self {
            Weight::F32 { shape, .. } | Weight::F16 { shape, .. } => shape.clone(),
            Weight::Quantized(matrix) => vec![matrix.rows, matrix.cols],
        }
    }

    /// Joins matrices with the same inputs by rows. Rows are outputs, so this is exact.
    ///
    /// The result is quantized if all parts are, f16 if all parts are, else f32.
    ///
    /// # Panics
    ///
    /// If `parts` is empty, the numbers of inputs differ, or quantized matrices have different formats.
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

    /// The values in f32, row-major. Does not copy f32 values.
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
