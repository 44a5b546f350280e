//! Tensors in host memory: [`HostTensor`] as a checkpoint stores it, [`Weight`] as the engine loads it.

use std::borrow::Cow;

use half::{f16, slice::HalfFloatSliceExt};

use crate::quant::QuantizedMatrix;

/// The number type of a stored tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// The upper half of an f32.
    BF16,
    /// Signed 32-bit words: packed codes and group indices of GPTQ checkpoints.
    I32,
    /// Unsigned 32-bit words: packed codes of MLC folders.
    U32,
    /// Signed 64-bit words, as some tools write `g_idx`.
    I64,
}

impl Dtype {
    /// Bytes per element.
    pub fn size(self) -> usize {
        match self {
            Dtype::F16 | Dtype::BF16 => 2,
            Dtype::F32 | Dtype::I32 | Dtype::U32 => 4,
            Dtype::I64 => 8,
        }
    }
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Dtype::F32 => "f32",
            Dtype::F16 => "f16",
            Dtype::BF16 => "bf16",
            Dtype::I32 => "i32",
            Dtype::U32 => "u32",
            Dtype::I64 => "i64",
        })
    }
}

/// A tensor as its file stores it: little-endian, row-major, borrowed from a memory map where there is one.
#[derive(Debug, Clone)]
pub struct HostTensor<'a> {
    /// Number type.
    pub dtype: Dtype,
    /// Extents, outermost first.
    pub shape: Vec<usize>,
    /// `shape.product() * dtype.size()` bytes.
    pub bytes: Cow<'a, [u8]>,
}

impl HostTensor<'_> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.dtype.size()
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The values widened to f32. Panics on an integer tensor: callers check [`HostTensor::dtype`] first.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut values = Vec::new();
        widen(self.dtype, &self.bytes, &mut values);
        values
    }
}

/// Puts the numbers in `bytes`, widened to f32, into `values`, in place of what is there. Panics where they are integers.
pub fn widen(dtype: Dtype, bytes: &[u8], values: &mut Vec<f32>) {
    values.clear();
    match dtype {
        Dtype::F32 => values.extend(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))),
        // The upper half of an f32.
        Dtype::BF16 => {
            values.extend(
                bytes.chunks_exact(2).map(|b| f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16)),
            );
        }
        Dtype::F16 => {
            values.resize(bytes.len() / 2, 0.0);
            // By the processor's own instruction, where the numbers lie as it wants them.
            match bytemuck::try_cast_slice::<u8, f16>(bytes) {
                Ok(halves) if cfg!(target_endian = "little") => halves.convert_to_f32_slice(values),
                _ => {
                    for (value, b) in values.iter_mut().zip(bytes.chunks_exact(2)) {
                        *value = f16::from_le_bytes([b[0], b[1]]).to_f32();
                    }
                }
            }
        }
        other => panic!("widen: a tensor of {other} holds no floating-point values"),
    }
}

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
