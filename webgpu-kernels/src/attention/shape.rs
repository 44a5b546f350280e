//! [`AttentionShape`]: heads, rotation, scale and mask of a layer's attention.

use crate::{
    KvDtype, Variant,
    kv::{DeviceSpan, padded},
};

/// Heads, rotation, scale and mask of a layer's attention.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionShape {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads. Query head `h` reads key head `h / (heads / kv_heads)`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Number of leading elements of each head that are rotated, see [`crate::rope`].
    pub rotary_dim: usize,
    /// Factor on `q . k`.
    pub scale: f32,
    /// Cap `c` of the scaled scores: `c * tanh(score / c)`.
    pub soft_cap: Option<f32>,
    /// Number of keys that a row sees: the last ones, its own included. `None`: all.
    pub window: Option<usize>,
}

impl AttentionShape {
    /// Query heads of a key head.
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Number of keys that a row at `position` sees.
    pub(crate) fn seen_at(&self, position: usize) -> usize {
        self.window.unwrap_or(usize::MAX).min(position + 1)
    }

    /// Number of keys that the rows of a span see together.
    pub(super) fn seen_by(&self, span: &DeviceSpan) -> usize {
        span.rows - 1 + self.seen_at(span.past_len)
    }

    /// The window for the kernels. Without one, it is larger than any sequence.
    pub(super) fn window_words(&self) -> u32 {
        self.window.map_or(u32::MAX, |window| window as u32)
    }

    /// Flags and constants that the kernels share.
    pub(super) fn variant(&self, dtype: KvDtype) -> Variant {
        let variant = dtype.flag(Variant::new()).flag_if("SOFT_CAP", self.soft_cap.is_some());
        variant
            .constant_is("HEAD_DIM", self.head_dim as u32)
            .constant_is("EIGHTS", padded(self.head_dim) as u32 / 8)
            .constant_is("GROUP", self.group() as u32)
    }
}
