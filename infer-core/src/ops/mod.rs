//! [`Ops`]: the operations a decoder-only transformer is written in.
//!
//! `model/decoder.rs` is written once over this trait. [`gpu::GpuOps`] records the kernels of `webgpu-kernels`,
//! [`candle::CandleOps`] runs the same operations on the CPU, and the quantizer wraps either to see what goes into each
//! matrix. A fused operation has its plain meaning as the default; an override must compute the same.

#[cfg(feature = "native")]
pub mod candle;
#[cfg(feature = "native")]
mod candle_integer;
#[cfg(feature = "native")]
mod candle_kv;
#[cfg(feature = "native")]
mod candle_wide;
pub mod gpu;

use std::ops::Range;

use model_format::{FileBytes, Role, Weight, decoder_config::Activation};
use webgpu_kernels::{WeightFormat, cross_entropy::cross_entropy, kl_divergence::kl_divergence};

pub use webgpu_kernels::{
    attention::AttentionShape,
    gram::TokenWeights,
    sample::{IN_PROMPT, Past, Rules},
};

use crate::Result;

/// The operations a decoder-only transformer is written in.
///
/// Activations are f32 matrices `[rows, cols]`, one row per token. Wrong shapes are our own fault and panic.
#[expect(async_fn_in_trait, reason = "the engine owns no thread, so no Send bound is wanted")]
pub trait Ops {
    /// Activations `[rows, cols]`, and vectors `[1, cols]`.
    type Tensor;
    /// A weight matrix `[n, k]` of `n` outputs and `k` inputs, in whatever format it was loaded.
    type Matrix;
    /// Keys and values of one layer and one sequence.
    type Kv;

    /// Takes a weight matrix to the device. `role` says which one it is.
    fn upload_matrix(&mut self, role: Role, weight: Weight) -> Result<Self::Matrix>;
    /// The same for a matrix of `rows` rows that comes in parts, one above the other; all but the last have an even number
    /// of rows.
    fn upload_parts(
        &mut self,
        role: Role,
        rows: usize,
        parts: &mut dyn Iterator<Item = Result<Weight>>,
    ) -> Result<Self::Matrix> {
        let whole = Weight::concat_rows(parts.collect::<Result<_>>()?);
        assert_eq!(whole.shape()[0], rows, "upload_parts: rows");
        self.upload_matrix(role, whole)
    }
    /// The same for a matrix that is read meanwhile.
    async fn upload_rows(&mut self, role: Role, source: &mut impl Rows) -> Result<Self::Matrix> {
        let [rows, _] = source.shape();
        let whole = source.read(0..rows).await?;
        self.upload_matrix(role, whole)
    }
    /// Takes `[rows, cols]` values to the device: norm weights, the rotary table, hidden states of the quantizer.
    fn upload(&mut self, rows: usize, cols: usize, values: &[f32]) -> Result<Self::Tensor>;
    /// Room for the keys and values of one layer.
    fn new_kv(&mut self, shape: KvShape) -> Result<Self::Kv>;
    /// The values of `x`, row-major. With [`Choose::token`] the only operation that waits.
    async fn read(&mut self, x: &Self::Tensor) -> Result<Vec<f32>>;

    /// How many rows of `work` multiplications and additions each, in the largest operation, should be run at a time. The same
    /// for a device and a program in every run, however busy the device is.
    fn rows_at_once(&self, work: u64) -> usize {
        let _ = work;
        usize::MAX
    }

    /// Fewest rows of a text that are run at a time so that each comes out as it does in any longer part, bit for bit. Kernels
    /// for fewer rows may round differently.
    fn fewest_rows(&self) -> usize {
        2
    }

    /// The loss of each row of `logits`, `ln sum over c of exp(logits[r, c]) - logits[r, targets[r]]`. Waits.
    async fn cross_entropy(&mut self, logits: &Self::Tensor, targets: &[u32]) -> Result<Vec<f32>> {
        let logits = self.read(logits).await?;
        let rows = logits.chunks_exact(logits.len() / targets.len()).zip(targets);
        Ok(rows.map(|(logits, &target)| cross_entropy(logits, target)).collect())
    }

    /// How far the predictions of `others` `[rows, vocabulary]` are from those of `logits`, row by row: the
    /// Kullback-Leibler divergence `sum over c of p[c] * (ln p[c] - ln q[c])`, p the softmax of `logits`. Waits.
    async fn kl_divergence(&mut self, logits: &Self::Tensor, others: &Self::Tensor, rows: usize) -> Result<Vec<f32>> {
        let (logits, others) = (self.read(logits).await?, self.read(others).await?);
        let cols = logits.len() / rows;
        Ok(logits.chunks_exact(cols).zip(others.chunks_exact(cols)).map(|(p, q)| kl_divergence(p, q)).collect())
    }

    /// `y[t, :] = scale * table[tokens[t], :]`.
    fn embedding(&mut self, table: &Self::Matrix, tokens: &[u32], scale: f32) -> Self::Tensor;
    /// `y[r, c] = x[r, c] / sqrt(mean_c(x[r, c]^2) + eps) * weight[c]`.
    fn rms_norm(&mut self, x: &Self::Tensor, weight: &Self::Tensor, eps: f32) -> Self::Tensor;
    /// `y[m, n] = sum over k of x[m, k] * w[n, k]`.
    fn linear(&mut self, x: &Self::Tensor, matrix: &Self::Matrix) -> Self::Tensor;
    /// Causal attention: rotates queries and keys, appends keys and values to each span's cache at `past_len`, and
    /// returns `[rows, heads * head_dim]`. `qkv` is `[rows, q | k | v]`; `spans` divide its rows among sequences, in order.
    /// `rope` is `[positions, rotary_dim]`, cosine and sine of each pair side by side.
    fn attention(
        &mut self,
        qkv: &Self::Tensor,
        rope: &Self::Tensor,
        shape: AttentionShape,
        spans: &mut [Span<'_, Self::Kv>],
    ) -> Self::Tensor;
    /// The product of `x` and the joined matrix of queries, keys and values, then [`Ops::attention`].
    fn linear_attention(
        &mut self,
        x: &Self::Tensor,
        matrix: &Self::Matrix,
        rope: &Self::Tensor,
        shape: AttentionShape,
        spans: &mut [Span<'_, Self::Kv>],
    ) -> Self::Tensor {
        let qkv = self.linear(x, matrix);
        self.attention(&qkv, rope, shape, spans)
    }
    /// The norm of each query head and of each key head of `qkv` `[rows, q | k | v]`, in place. `query` and `key` are
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
    /// The named rows of `x`, in the given order.
    fn select_rows(&mut self, x: &Self::Tensor, rows: &[usize]) -> Self::Tensor;

    /// `x += y`, then its norm.
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

    /// `x +=` the product of `y` and `matrix`, then its norm: the end of a block of the residual stream. The norm goes to
    /// [`Ops::linear`], [`Ops::linear_glu`] or [`Ops::read`]; an implementation may leave part of it to them.
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

    /// The product of `x` and the joined matrix of a gate and what it gates, then [`Ops::glu`].
    fn linear_glu(&mut self, x: &Self::Tensor, gate_up: &Self::Matrix, activation: Activation) -> Self::Tensor {
        let gate_up = self.linear(x, gate_up);
        self.glu(&gate_up, activation)
    }

    /// What a layer begins with that has no biases and no norms besides: the norm of the residual stream `x`, and attention.
    fn begin_layer(
        &mut self,
        x: &Self::Tensor,
        norm: &Self::Tensor,
        eps: f32,
        layer: NextLayer<'_, '_, Self>,
    ) -> Self::Tensor {
        begin_layer(self, x, norm, eps, layer)
    }

    /// What comes after attention in a layer that has no biases and no norms besides, `y` being attention's output, and with
    /// `next` the next layer's attention. Returns that one's output, or the norm of the residual stream `x`.
    fn finish_layer(
        &mut self,
        x: &mut Self::Tensor,
        y: &Self::Tensor,
        end: LayerEnd<'_, Self>,
        next: Option<NextLayer<'_, '_, Self>>,
    ) -> Self::Tensor {
        finish_layer(self, x, y, end, next)
    }
}

/// The matrices and norms after a layer's attention.
pub struct LayerEnd<'a, O: Ops + ?Sized> {
    /// Of attention's output.
    pub out: &'a O::Matrix,
    /// Of the stream after it.
    pub out_norm: &'a O::Tensor,
    /// Of a gate and what it gates.
    pub gate_up: &'a O::Matrix,
    /// Of the gate.
    pub activation: Activation,
    /// Back to the stream.
    pub down: &'a O::Matrix,
    /// Of the stream after it: the next layer's first, or the final one.
    pub next_norm: &'a O::Tensor,
    /// Added to mean squares.
    pub eps: f32,
}

/// What the next layer begins with: see [`Ops::linear_attention`].
pub struct NextLayer<'a, 's, O: Ops + ?Sized> {
    /// The joined matrix of queries, keys and values.
    pub qkv: &'a O::Matrix,
    /// The rotary table.
    pub rope: &'a O::Tensor,
    /// The attention.
    pub shape: AttentionShape,
    /// The texts.
    pub spans: &'a mut [Span<'s, O::Kv>],
}

/// [`Ops::begin_layer`], one operation after the other.
pub(crate) fn begin_layer<O: Ops + ?Sized>(
    ops: &mut O,
    x: &O::Tensor,
    norm: &O::Tensor,
    eps: f32,
    NextLayer { qkv, rope, shape, spans }: NextLayer<'_, '_, O>,
) -> O::Tensor {
    let normed = ops.rms_norm(x, norm, eps);
    ops.linear_attention(&normed, qkv, rope, shape, spans)
}

/// [`Ops::finish_layer`], one operation after the other.
pub(crate) fn finish_layer<O: Ops + ?Sized>(
    ops: &mut O,
    x: &mut O::Tensor,
    y: &O::Tensor,
    end: LayerEnd<'_, O>,
    next: Option<NextLayer<'_, '_, O>>,
) -> O::Tensor {
    let LayerEnd { out, out_norm, gate_up, activation, down, next_norm, eps } = end;
    let normed = ops.linear_add_rms_norm(x, y, out, out_norm, eps);
    let activated = ops.linear_glu(&normed, gate_up, activation);
    let normed = ops.linear_add_rms_norm(x, &activated, down, next_norm, eps);
    match next {
        Some(NextLayer { qkv, rope, shape, spans }) => ops.linear_attention(&normed, qkv, rope, shape, spans),
        None => normed,
    }
}

/// A weight matrix whose rows are read when they are wanted.
#[expect(async_fn_in_trait, reason = "the engine owns no thread, so no Send bound is wanted")]
pub trait Rows {
    /// Rows and columns: outputs and inputs.
    fn shape(&self) -> [usize; 2];
    /// How many rows are worth reading at a time: an even number, or all.
    fn rows_at_once(&self) -> usize;
    /// Some of the rows, or all of them.
    async fn read(&mut self, rows: Range<usize>) -> Result<Weight>;
    /// How the rows are stored where they lie, if that is as a GPU has them.
    fn stored_format(&self) -> Option<WeightFormat>;
    /// Some of the rows as they are stored: codes or numbers, and the scales of codes.
    async fn stored(&mut self, rows: Range<usize>) -> Result<[FileBytes; 2]>;
}

/// Choosing the next token where the logits are, so that the token after it can be run before the host knows the first.
#[expect(async_fn_in_trait, reason = "the engine owns no thread, so no Send bound is wanted")]
pub trait Choose: Ops {
    /// A chosen token, perhaps still on its way to the host.
    type Token;
    /// What tokens are drawn with, where the logits are.
    type Draw;

    /// How many tokens it pays to run before the first is known.
    fn ahead(&self) -> usize;
    /// The column of the largest value of `logits` `[1, cols]`, the first among equals; NaN is never chosen.
    fn choose(&mut self, logits: &Self::Tensor) -> Result<Self::Token>;
    /// What draws by these rules from rows of `cols` logits, after what `history` tells of each column where there is one.
    /// `None`: the host had better read the logits and draw for itself.
    fn new_draw(&mut self, rules: Rules, cols: usize, history: Option<&[Past]>) -> Result<Option<Self::Draw>>;
    /// Draws from `logits` `[1, cols]` by a number from 0 to below 1; the token counts as said for the next.
    fn draw(&mut self, logits: &Self::Tensor, with: &Self::Draw, random: f64) -> Result<Self::Token>;
    /// The column of the largest value of each of so many rows of `logits`, as [`Choose::choose`] has it. Waits.
    async fn choose_rows(&mut self, logits: &Self::Tensor, rows: usize) -> Result<Vec<u32>>;
    /// `y[0, :] = scale * table[token, :]`.
    fn embedding_of(&mut self, table: &Self::Matrix, token: &Self::Token, scale: f32) -> Self::Tensor;
    /// Waits for the token.
    async fn token(&mut self, token: Self::Token) -> Result<u32>;
    /// What the user should know of that happened since this was last asked: a fault of the device that was worked around.
    fn take_notice(&mut self) -> Option<String> {
        None
    }
}

/// The rows of one sequence in a batch, and the cache they belong to.
pub struct Span<'a, K> {
    /// How many rows of the batch are this sequence's next tokens.
    pub rows: usize,
    /// How many tokens the cache holds before them: the position of the first row.
    pub past_len: usize,
    /// The layer's keys and values of this sequence.
    pub kv: &'a mut K,
}

/// The shape of one layer's cache: keys and values are `[kv_heads, capacity, head_dim]` each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvShape {
    /// Key and value heads.
    pub kv_heads: usize,
    /// Tokens there is room for.
    pub capacity: usize,
    /// Width of a head.
    pub head_dim: usize,
}
