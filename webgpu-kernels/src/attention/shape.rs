//! [`AttentionShape`]: heads, rotation, scale and mask of a layer's attention.

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
}
