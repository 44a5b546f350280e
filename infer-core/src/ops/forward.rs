//! [`Forward`]: the operations of a layer.
//!
//! A fused operation has its plain meaning as the trait's default. An override computes the same.

use model_format::decoder_config::Activation;

use super::{
    backend::Backend,
    shapes::{AttentionShape, LayerEnd, LayerStart, RowSpan},
};

/// The operations of a layer, one method each.
pub trait Forward: Backend {
    /// The number of rows to run at a time, so that the device is not busy for long. `work` is the multiply-adds per row of
    /// the largest operation. The same in every run on a device, regardless of its load.
    fn rows_at_once(&self, work: u64) -> usize {
        let _ = work;
        usize::MAX
    }

    /// The smallest chunk with the same result for each row, bit for bit, as any larger chunk. Kernels for fewer rows may sum in
    /// a different order.
    fn fewest_rows(&self) -> usize {
        2
    }

    /// `y[t, :] = scale * table[tokens[t], :]`.
    fn embedding(&mut self, table: &Self::Matrix, tokens: &[u32], scale: f32) -> Self::Tensor;

    /// `y[r, c] = x[r, c] / sqrt(mean_c(x[r, c]^2) + eps) * weight[c]`.
    fn rms_norm(&mut self, x: &Self::Tensor, weight: &Self::Tensor, eps: f32) -> Self::Tensor;

    /// `y[m, n] = sum over k of x[m, k] * w[n, k]`.
    fn linear(&mut self, x: &Self::Tensor, matrix: &Self::Matrix) -> Self::Tensor;

    /// The rows of a batch. `spans` divide them among sequences, in order. Every layer of a step takes the result.
    fn place_rows(&mut self, spans: &[RowSpan<'_>]) -> Self::Rows;

    /// Causal attention: rotates queries and keys, stores keys and values in the pool, and returns `[rows, heads * head_dim]`.
    /// `qkv` is `[rows, q | k | v]`. A row sees the earlier keys of its own sequence. `rope` is `[positions, rotary_dim]`, cosine
    /// and sine of each pair side by side.
    fn attention(
        &mut self,
        qkv: &Self::Tensor,
        rope: &Self::Tensor,
        shape: AttentionShape,
        kv: &mut Self::Kv,
        rows: &Self::Rows,
    ) -> Self::Tensor;

    /// [`Forward::linear`] with the joined matrix of queries, keys and values, then [`Forward::attention`].
    fn linear_attention(
        &mut self,
        x: &Self::Tensor,
        matrix: &Self::Matrix,
        rope: &Self::Tensor,
        shape: AttentionShape,
        kv: &mut Self::Kv,
        rows: &Self::Rows,
    ) -> Self::Tensor {
        let qkv = self.linear(x, matrix);
        self.attention(&qkv, rope, shape, kv, rows)
    }

    /// RMS norm of each query head and each key head of `qkv` `[rows, q | k | v]`, in place. `query` and `key` are
    /// weights `[1, head_dim]`.
    fn norm_heads(
        &mut self,
        qkv: &mut Self::Tensor,
        query: &Self::Tensor,
        key: &Self::Tensor,
        shape: AttentionShape,
        eps: f32,
    );

    /// `y[r, i] = act(gate_up[r, i]) * gate_up[r, inner + i]`.
    fn glu(&mut self, gate_up: &Self::Tensor, activation: Activation) -> Self::Tensor;

    /// `x += y`.
    fn add_assign(&mut self, x: &mut Self::Tensor, y: &Self::Tensor);

    /// `x[r, c] += bias[c]`.
    fn add_bias(&mut self, x: &mut Self::Tensor, bias: &Self::Tensor);

    /// `x = cap * tanh(x / cap)`.
    fn soft_cap(&mut self, x: &mut Self::Tensor, cap: f32);

    /// The given rows of `x`, in the given order.
    fn select_rows(&mut self, x: &Self::Tensor, rows: &[usize]) -> Self::Tensor;

    /// `x += y`, then the RMS norm of `x`.
    fn add_rms_norm(
        &mut self,
        x: &mut Self::Tensor,
        y: &Self::Tensor,
        weight: &Self::Tensor,
        eps: f32,
    ) -> Self::Tensor {
        self.add_assign(x, y);
        self.rms_norm(x, weight, eps)
    }

    /// The end of a block: adds the product of `y` and `matrix` to the residual stream `x`, and returns the RMS norm of `x`.
    ///
    /// An implementation may leave the division by the root mean square to the operation that reads the result. Pass the
    /// result only to [`Forward::linear`], [`Forward::linear_glu`] or [`Backend::read`].
    fn linear_add_rms_norm(
        &mut self,
        x: &mut Self::Tensor,
        y: &Self::Tensor,
        matrix: &Self::Matrix,
        weight: &Self::Tensor,
        eps: f32,
    ) -> Self::Tensor {
        let y = self.linear(y, matrix);
        self.add_rms_norm(x, &y, weight, eps)
    }

    /// [`Forward::linear`] with the joined matrix of gate and up projection, then [`Forward::glu`].
    fn linear_glu(&mut self, x: &Self::Tensor, gate_up: &Self::Matrix, activation: Activation) -> Self::Tensor {
        let gate_up = self.linear(x, gate_up);
        self.glu(&gate_up, activation)
    }

    /// The beginning of a layer without biases and without norms of queries and keys: the RMS norm of the residual stream `x`
    /// by the weights `norm`, then attention.
    fn begin_layer(
        &mut self,
        x: &Self::Tensor,
        norm: &Self::Tensor,
        eps: f32,
        layer: LayerStart<'_, Self>,
    ) -> Self::Tensor {
        begin_layer(self, x, norm, eps, layer)
    }

    /// The rest of a layer after its attention output `y`, for a layer without biases and extra norms. With `next`, also the
    /// attention of the next layer: returns its output. Without `next`, returns the norm of the residual stream `x`.
    fn finish_layer(
        &mut self,
        x: &mut Self::Tensor,
        y: &Self::Tensor,
        end: LayerEnd<'_, Self>,
        next: Option<LayerStart<'_, Self>>,
    ) -> Self::Tensor {
        finish_layer(self, x, y, end, next)
    }
}

/// [`Forward::begin_layer`], one operation after the other.
pub(crate) fn begin_layer<O: Forward + ?Sized>(
    ops: &mut O,
    x: &O::Tensor,
    norm: &O::Tensor,
    eps: f32,
    LayerStart { qkv, rope, shape, kv, rows }: LayerStart<'_, O>,
) -> O::Tensor {
    let normed = ops.rms_norm(x, norm, eps);
    ops.linear_attention(&normed, qkv, rope, shape, kv, rows)
}

/// [`Forward::finish_layer`], one operation after the other.
pub(crate) fn finish_layer<O: Forward + ?Sized>(
    ops: &mut O,
    x: &mut O::Tensor,
    y: &O::Tensor,
    end: LayerEnd<'_, O>,
    next: Option<LayerStart<'_, O>>,
) -> O::Tensor {
    let LayerEnd { out, out_norm, gate_up, activation, down, next_norm, eps } = end;
    let normed = ops.linear_add_rms_norm(x, y, out, out_norm, eps);
    let activated = ops.linear_glu(&normed, gate_up, activation);
    let normed = ops.linear_add_rms_norm(x, &activated, down, next_norm, eps);
    match next {
        Some(LayerStart { qkv, rope, shape, kv, rows }) => ops.linear_attention(&normed, qkv, rope, shape, kv, rows),
        None => normed,
    }
}
