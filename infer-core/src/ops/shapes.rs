//! Arguments of the operations: shapes of attention and cache, and the matrices and norms of a layer.

use model_format::decoder_config::Activation;

pub use webgpu_kernels::{PAGE, RowSpan, attention::AttentionShape};

use super::backend::Backend;

/// The shape of one layer's pool: keys and values are `[pages, kv_heads, PAGE, head_dim]` each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvShape {
    /// Key and value heads.
    pub kv_heads: usize,
    /// Number of pages of [`PAGE`] tokens.
    pub pages: usize,
    /// Width of a head.
    pub head_dim: usize,
}

/// The attention of a layer: arguments of [`Forward::linear_attention`](super::Forward::linear_attention).
pub struct LayerStart<'a, B: Backend + ?Sized> {
    /// The joined matrix of queries, keys and values.
    pub qkv: &'a B::Matrix,
    /// The rotary table.
    pub rope: &'a B::Tensor,
    /// The shape of the attention.
    pub shape: AttentionShape,
    /// The layer's keys and values.
    pub kv: &'a mut B::Kv,
    /// The rows of the batch.
    pub rows: &'a B::Rows,
}

/// The matrices and norms of a layer after its attention.
pub struct LayerEnd<'a, B: Backend + ?Sized> {
    /// The attention's output projection.
    pub out: &'a B::Matrix,
    /// Norm weights before the feed-forward.
    pub out_norm: &'a B::Tensor,
    /// The joined matrix of gate and up projection.
    pub gate_up: &'a B::Matrix,
    /// Activation of the gate.
    pub activation: Activation,
    /// The feed-forward's output projection.
    pub down: &'a B::Matrix,
    /// Norm weights after the layer: of the next layer's input, or the final norm.
    pub next_norm: &'a B::Tensor,
    /// Added to mean squares.
    pub eps: f32,
}
