//! [`KvCache`]: keys and values of one layer and one sequence on the device. [`crate::rope`] appends to it,
//! [`crate::attention`] reads it.

use crate::{Gpu, Result, Variant, gpu::Buffer};

/// How keys and values are stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum KvDtype {
    /// f16, in pairs: half the memory.
    #[default]
    F16,
    /// f32.
    F32,
}

impl KvDtype {
    /// The flag of kernels that read or write the cache.
    pub(crate) fn flag(self, variant: Variant) -> Variant {
        variant.flag_if("KV_F16", self == KvDtype::F16)
    }

    /// Bytes of a value.
    pub fn size(self) -> usize {
        match self {
            KvDtype::F16 => 2,
            KvDtype::F32 => 4,
        }
    }
}

/// Keys and values of one layer and one sequence: `[kv_heads, capacity, padded head_dim]` each.
pub struct KvCache {
    /// Keys, rotated.
    pub k: Buffer<u32>,
    /// Values.
    pub v: Buffer<u32>,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Tokens there is room for.
    pub capacity: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// How both are stored.
    pub dtype: KvDtype,
}

impl KvCache {
    /// Bytes of a cache.
    pub fn bytes(kv_heads: usize, capacity: usize, head_dim: usize, dtype: KvDtype) -> u64 {
        2 * kv_heads as u64 * capacity as u64 * (padded(head_dim) * dtype.size()) as u64
    }

    /// Bytes of so many of its tokens.
    pub(crate) fn bytes_of(&self, tokens: usize) -> u64 {
        KvCache::bytes(self.kv_heads, tokens, self.head_dim, self.dtype)
    }

    /// An empty cache.
    ///
    /// Errors: out of memory, or larger than a kernel can see.
    pub fn new(gpu: &Gpu, kv_heads: usize, capacity: usize, head_dim: usize, dtype: KvDtype) -> Result<KvCache> {
        let words = kv_heads * capacity * padded(head_dim) * dtype.size() / 4;
        Ok(KvCache { k: gpu.zeroed(words)?, v: gpu.zeroed(words)?, kv_heads, capacity, head_dim, dtype })
    }
}

/// Width of a head in the cache: kernels load eight values at a time. The padding stays zero.
pub(crate) fn padded(head_dim: usize) -> usize {
    head_dim.next_multiple_of(8)
}
