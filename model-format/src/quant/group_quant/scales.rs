//! [`Scales`]: the scales of a matrix, as a folder stores them.

use half::{bf16, f16};

use crate::Dtype;

/// Scales in 16 bits each: f16, or bf16 where the format computes in a wider range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scales {
    /// [`Dtype::F16`] or [`Dtype::BF16`].
    pub dtype: Dtype,
    /// Row after row.
    pub bits: Vec<u16>,
}

impl Scales {
    /// Scales in f16.
    pub fn f16(values: &[f16]) -> Scales {
        Scales { dtype: Dtype::F16, bits: values.iter().map(|v| v.to_bits()).collect() }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.bits.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.bits.is_empty()
    }

    /// All of them in f16, where that changes none. It does for bf16 numbers below 2^-17 alone.
    pub fn to_f16(&self) -> Option<Vec<f16>> {
        if self.dtype == Dtype::F16 {
            return Some(self.bits.iter().map(|&bits| f16::from_bits(bits)).collect());
        }
        let exact = |i| Some(f16::from_f32(self.get(i))).filter(|narrow| narrow.to_f32() == self.get(i));
        (0..self.len()).map(exact).collect()
    }

    /// The value of one.
    pub fn get(&self, index: usize) -> f32 {
        match self.dtype {
            Dtype::F16 => f16::from_bits(self.bits[index]).to_f32(),
            _ => bf16::from_bits(self.bits[index]).to_f32(),
        }
    }
}

/// A value in the bits of `dtype`, rounded; f32 numbers beyond bf16's range are cut to it, as TVM does.
pub(super) fn scale_bits(dtype: Dtype, value: f32) -> u16 {
    match dtype {
        Dtype::F16 => f16::from_f32(value).to_bits(),
        _ => bf16_on_disk(value).to_bits(),
    }
}

/// An f32 number as MLC writes it: bf16, halves to even; what lies beyond bf16's range is cut off to its largest.
pub fn bf16_on_disk(value: f32) -> bf16 {
    let limit = bf16::MAX.to_f32();
    if value > -limit && value < limit {
        return bf16::from_f32(value);
    }
    bf16::from_bits((value.to_bits() >> 16) as u16)
}

/// The nearest number of a scale's type, and its bits.
pub(crate) fn narrow(dtype: Dtype, scale: f32) -> (f32, u16) {
    match dtype {
        Dtype::F16 => (f16::from_f32(scale).to_f32(), f16::from_f32(scale).to_bits()),
        _ => (bf16::from_f32(scale).to_f32(), bf16::from_f32(scale).to_bits()),
    }
}
