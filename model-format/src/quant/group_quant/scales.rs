//! [`Scales`]: the scales of a quantized matrix in their stored form.

use half::{bf16, f16};

use crate::Dtype;

/// Scales of 16 bits: f16, or bf16 for formats that compute in bf16 or f32.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scales {
    /// [`Dtype::F16`] or [`Dtype::BF16`].
    pub dtype: Dtype,
    /// The bits of the scales, row-major `[rows, groups]`.
    pub bits: Vec<u16>,
}

impl Scales {
    /// Scales in f16.
    pub fn f16(values: &[f16]) -> Scales {
        Scales { dtype: Dtype::F16, bits: values.iter().map(|v| v.to_bits()).collect() }
    }

    /// Number of scales.
    pub fn len(&self) -> usize {
        self.bits.len()
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.bits.is_empty()
    }

    /// Converts all scales to f16. `None` if a value changes: f16 has a smaller range than bf16, and for subnormals
    /// below 2^-17 fewer bits.
    pub fn to_f16(&self) -> Option<Vec<f16>> {
        if self.dtype == Dtype::F16 {
            return Some(self.bits.iter().map(|&bits| f16::from_bits(bits)).collect());
        }
        let exact = |i| Some(f16::from_f32(self.get(i))).filter(|narrow| narrow.to_f32() == self.get(i));
        (0..self.len()).map(exact).collect()
    }

    /// The scale at `index`, in f32.
    pub fn get(&self, index: usize) -> f32 {
        match self.dtype {
            Dtype::F16 => f16::from_bits(self.bits[index]).to_f32(),
            _ => bf16::from_bits(self.bits[index]).to_f32(),
        }
    }
}

/// The bits of a value rounded to `dtype`. For bf16, see [`bf16_on_disk`].
pub(super) fn scale_bits(dtype: Dtype, value: f32) -> u16 {
    match dtype {
        Dtype::F16 => f16::from_f32(value).to_bits(),
        _ => bf16_on_disk(value).to_bits(),
    }
}

/// Rounds f32 to bf16 like MLC (in TVM): to nearest even within bf16's range. Values beyond it are truncated to the
/// upper 16 bits, so they do not round up to infinity.
pub fn bf16_on_disk(value: f32) -> bf16 {
    let limit = bf16::MAX.to_f32();
    if value > -limit && value < limit {
        return bf16::from_f32(value);
    }
    bf16::from_bits((value.to_bits() >> 16) as u16)
}

/// Rounds a scale to `dtype`: the value and its bits.
pub(crate) fn narrow(dtype: Dtype, scale: f32) -> (f32, u16) {
    match dtype {
        Dtype::F16 => (f16::from_f32(scale).to_f32(), f16::from_f32(scale).to_bits()),
        _ => (bf16::from_f32(scale).to_f32(), bf16::from_f32(scale).to_bits()),
    }
}
