//! [`KvCache`]: keys and values of one layer and one sequence on the device. [`crate::rope`] appends to it, and
//! [`crate::attention`] reads it.

use half::f16;

use crate::{
    Gpu, Result,
    gpu::{Buffer, Recorder},
};

/// Data type of the KV cache.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum KvDtype {
    /// f16, in pairs: half the memory.
    #[default]
    F16,
    /// f32.
    F32,
    /// 8-bit codes, four to a word. Each group of 32 has an f32 scale, which lies after the row's codes: `value = code * scale`. If the
    /// width of a head is a multiple of 64, a value takes nine bits.
    Q8,
}

/// Values that share a scale in [`KvDtype::Q8`].
pub(crate) const GROUP: usize = 32;

impl KvDtype {
    /// All data types.
    pub const ALL: [KvDtype; 3] = [KvDtype::F16, KvDtype::F32, KvDtype::Q8];

    /// Words of a row: one head's key or value at one position. The number is even, and values are padded to a multiple of eight.
    pub(crate) fn row_words(self, head_dim: usize) -> usize {
        let padded = padded(head_dim);
        match self {
            KvDtype::F16 => padded / 2,
            KvDtype::F32 => padded,
            KvDtype::Q8 => padded / 4 + padded.div_ceil(GROUP).next_multiple_of(2),
        }
    }

    /// The values of rows, with padding.
    pub(crate) fn values(self, head_dim: usize, words: &[u32]) -> Vec<f32> {
        let codes = padded(head_dim) / 4;
        let row = |row: &[u32]| -> Vec<f32> {
            match self {
                KvDtype::F32 => row.iter().map(|word| f32::from_bits(*word)).collect(),
                KvDtype::F16 => halves(row).iter().map(|half| half.to_f32()).collect(),
                KvDtype::Q8 => {
                    let code = |i: usize| f32::from(row[i / 4].to_le_bytes()[i % 4] as i8);
                    (0..4 * codes).map(|i| code(i) * f32::from_bits(row[codes + i / GROUP])).collect()
                }
            }
        };
        words.chunks_exact(self.row_words(head_dim)).flat_map(row).collect()
    }
}

/// Keys and values of one layer and one sequence: `[kv_heads, capacity]` rows of a head each.
pub struct KvCache {
    /// Keys, rotated.
    pub k: Buffer<u32>,
    /// Values.
    pub v: Buffer<u32>,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Tokens that fit.
    pub capacity: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Data type of both.
    pub dtype: KvDtype,
}

impl KvCache {
    /// A cache without memory, for a planning recorder.
    pub fn hollow(recorder: &Recorder, kv_heads: usize, capacity: usize, head_dim: usize, dtype: KvDtype) -> KvCache {
        let words = kv_heads * capacity * dtype.row_words(head_dim);
        let hollow = || recorder.hollow(words).expect("a planning recorder");
        KvCache { k: hollow(), v: hollow(), kv_heads, capacity, head_dim, dtype }
    }

    /// Bytes of a cache.
    pub fn bytes(kv_heads: usize, capacity: usize, head_dim: usize, dtype: KvDtype) -> u64 {
        2 * kv_heads as u64 * capacity as u64 * 4 * dtype.row_words(head_dim) as u64
    }

    /// Bytes of some of its tokens.
    pub(crate) fn bytes_of(&self, tokens: usize) -> u64 {
        KvCache::bytes(self.kv_heads, tokens, self.head_dim, self.dtype)
    }

    /// An empty cache.
    ///
    /// Errors: out of memory, or larger than a binding.
    pub fn new(gpu: &Gpu, kv_heads: usize, capacity: usize, head_dim: usize, dtype: KvDtype) -> Result<KvCache> {
        let words = kv_heads * capacity * dtype.row_words(head_dim);
        Ok(KvCache { k: gpu.zeroed(words)?, v: gpu.zeroed(words)?, kv_heads, capacity, head_dim, dtype })
    }
}

/// Padded width of a head in the cache: kernels load eight values at a time. The padding stays zero.
pub(crate) fn padded(head_dim: usize) -> usize {
    head_dim.next_multiple_of(8)
}

/// The two f16 of each word.
pub(crate) fn halves(words: &[u32]) -> Vec<f16> {
    words.iter().flat_map(|w| [f16::from_bits(*w as u16), f16::from_bits((w >> 16) as u16)]).collect()
}
