//! [`HostTensor`]: a tensor in host memory in its stored form, and its number type [`Dtype`].

use std::borrow::Cow;

use half::{f16, slice::HalfFloatSliceExt};

/// The number type of a stored tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// bfloat16: the upper half of an f32.
    BF16,
    /// Signed 32-bit words: packed codes and group indices of GPTQ checkpoints.
    I32,
    /// Unsigned 32-bit words: packed codes of MLC folders.
    U32,
    /// Signed 64-bit words. Some tools write `g_idx` so.
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

/// A tensor as stored in its file: little-endian, row-major. Borrows the bytes if the file is memory-mapped.
#[derive(Debug, Clone)]
pub struct HostTensor<'a> {
    /// Number type.
    pub dtype: Dtype,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// The data: `shape.product() * dtype.size()` bytes.
    pub bytes: Cow<'a, [u8]>,
}

impl HostTensor<'_> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.dtype.size()
    }

    /// True if it has no elements.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The values converted to f32, which is exact.
    ///
    /// # Panics
    ///
    /// If the dtype is an integer type.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut values = Vec::new();
        widen(self.dtype, &self.bytes, &mut values);
        values
    }
}

/// Replaces `values` by the numbers in `bytes`, converted to f32, which is exact.
///
/// # Panics
///
/// If `dtype` is an integer type.
pub fn widen(dtype: Dtype, bytes: &[u8], values: &mut Vec<f32>) {
    values.clear();
    match dtype {
        Dtype::F32 => values.extend(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))),
        Dtype::BF16 => {
            values.extend(
                bytes.chunks_exact(2).map(|b| f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16)),
            );
        }
        Dtype::F16 => {
            values.resize(bytes.len() / 2, 0.0);
            // `half` uses the processor's conversion instruction. It needs aligned little-endian data.
            match bytemuck::try_cast_slice::<u8, f16>(bytes) {
                Ok(halves) if cfg!(target_endian = "little") => halves.convert_to_f32_slice(values),
                _ => {
                    for (value, b) in values.iter_mut().zip(bytes.chunks_exact(2)) {
                        *value = f16::from_le_bytes([b[0], b[1]]).to_f32();
                    }
                }
            }
        }
        other => panic!("widen: {other} is not a floating-point type"),
    }
}
