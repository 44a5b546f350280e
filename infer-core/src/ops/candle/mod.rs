//! [`CandleOps`]: the operations on candle tensors, on the CPU.
//!
//! It has three uses: reference for the GPU, calibration in the quantizer, and fallback without a GPU. The first two use
//! [`CpuWeights::Exact`]: everything in f32. The fallback uses [`CpuWeights::Integer`]: quantized matrices stay packed, and
//! activations are rounded to 8 bits.

mod integer;
mod kv;
mod threads;
mod vectorized;

use std::convert::Infallible;

use candle_core::{CpuStorage, DType, Device, InplaceOp1, Layout, Storage, Tensor};
use model_format::{Role, Weight, decoder_config::Activation, quant::group_quant::dot::Interleaved};
use rayon::prelude::*;

use super::{AttentionShape, Backend, Choice, Choose, Forward, KvShape, Loading, Losses, Past, RowSpan, Rules, Source};
use crate::Result;
use integer::multiply;
use kv::{OwnSpan, attend_rows, first_key};
use threads::parts;
use vectorized::{rms_norm, silu_gate, softmax};

pub use crate::device::cpu_options::{CpuOptions, CpuWeights};
pub use kv::{CandleKv, CandleRows};

/// Query rows per block of attention. Bounds the score matrix to `heads * 64 * context` numbers.
const QUERY_BLOCK: usize = 64;

/// The operations on candle tensors, on the CPU.
#[derive(Debug, Clone, Default)]
pub struct CandleOps {
    options: CpuOptions,
    /// True if unquantized matrices are rounded to 8 bits too.
    rounds_floats: bool,
}

/// A weight matrix `[n, k]`.
#[derive(Debug)]
pub enum CandleMatrix {
    /// f32 values `[n, k]`.
    Float(Tensor),
    /// Codes for integer products.
    Integer(Interleaved),
}

impl CandleOps {
    /// Operations with the number types in `options`.
    pub fn new(options: CpuOptions) -> CandleOps {
        CandleOps { options, rounds_floats: false }
    }

    /// Approximate operations, for text that the model writes: every matrix has at most 8 bits, and all products are integer
    /// products. Several times as fast for a few rows.
    pub fn rounded() -> CandleOps {
        let options = CpuOptions { weights: CpuWeights::Integer, ..CpuOptions::default() };
        CandleOps { options, rounds_floats: true }
    }

    /// The values of `x`, row-major.
    pub fn values(x: &Tensor) -> Vec<f32> {
        x.flatten_all().and_then(|x| x.to_vec1()).expect("an f32 tensor on the CPU")
    }
}

/// Calls `read` with the values of a contiguous tensor, without a copy.
fn with_values<R>(x: &Tensor, read: impl FnOnce(&[f32]) -> R) -> R {
    let (storage, layout) = x.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else { panic!("a tensor on the CPU") };
    let (start, end) = layout.contiguous_offsets().expect("a contiguous tensor");
    read(&ours(storage.as_slice(), "an f32 tensor")[start..end])
}

/// Unwraps the result of an operation that fails only by a bug of this crate, because this crate chose the shapes.
fn ours<T>(result: candle_core::Result<T>, operation: &str) -> T {
    result.unwrap_or_else(|error| panic!("{operation}: {error}"))
}

impl Backend for CandleOps {
    type Tensor = Tensor;
    type Matrix = CandleMatrix;
    type Kv = CandleKv;
    type Rows = CandleRows;

    async fn read(&mut self, x: &Tensor) -> Result<Vec<f32>> {
        Ok(CandleOps::values(x))
    }
}

impl Loading for CandleOps {
    fn upload_matrix(&mut self, _: Role, weight: Weight) -> Result<CandleMatrix> {
        if let (CpuWeights::Integer, Weight::Quantized(matrix)) = (self.options.weights, &weight)
            && let Some(matrix) = Interleaved::new(matrix)
        {
            return Ok(CandleMatrix::Integer(matrix));
        }
        let (shape, values) = (weight.shape(), weight.into_f32());
        let rounded = match shape[..] {
            [rows, cols] if self.rounds_floats => Interleaved::rounded(rows, cols, &values),
            _ => None,
        };
        Ok(match rounded {
            Some(matrix) => CandleMatrix::Integer(matrix),
            None => CandleMatrix::Float(Tensor::from_vec(values, shape, &Device::Cpu)?),
        })
    }

    fn upload(&mut self, rows: usize, cols: usize, values: &[f32]) -> Result<Tensor> {
        Ok(Tensor::from_slice(values, (rows, cols), &Device::Cpu)?)
    }

    fn new_kv(&mut self, shape: KvShape) -> Result<CandleKv> {
        Ok(CandleKv::new(shape, self.options.kv))
    }
}

impl Losses for CandleOps {}

impl Forward for CandleOps {
    fn embedding(&mut self, table: &CandleMatrix, tokens: &[u32], scale: f32) -> Tensor {
        let rows = match table {
            CandleMatrix::Float(table) => {
                Tensor::new(tokens, &Device::Cpu).and_then(|ids| table.index_select(&ids, 0)?.to_dtype(DType::F32))
            }
            CandleMatrix::Integer(table) => {
                let rows: Vec<f32> = tokens.iter().flat_map(|&token| table.row(token as usize)).collect();
                Tensor::from_vec(rows, (tokens.len(), table.cols()), &Device::Cpu)
            }
        };
        ours(rows.and_then(|rows| rows * f64::from(scale)), "embedding")
    }

    fn rms_norm(&mut self, x: &Tensor, weight: &Tensor, eps: f32) -> Tensor {
        let normed = with_values(weight, |weight| with_values(x, |x| normed(x, weight, eps)));
        ours(Tensor::from_vec(normed, x.shape(), &Device::Cpu), "rms_norm")
    }

    fn linear(&mut self, x: &Tensor, matrix: &CandleMatrix) -> Tensor {
        let y = match matrix {
            CandleMatrix::Float(w) => w.t().and_then(|w| x.matmul(&w)),
            CandleMatrix::Integer(w) => {
                let y = with_values(x, |x| multiply(w, x));
                let shape = (y.len() / w.rows(), w.rows());
                Tensor::from_vec(y, shape, &Device::Cpu)
            }
        };
        ours(y, "linear")
    }

    fn place_rows(&mut self, spans: &[RowSpan<'_>]) -> CandleRows {
        CandleRows::new(spans)
    }

    fn attention(
        &mut self,
        qkv: &Tensor,
        rope: &Tensor,
        shape: AttentionShape,
        kv: &mut CandleKv,
        rows: &CandleRows,
    ) -> Tensor {
        let spans = &rows.spans;
        let rows = rows.count();
        assert_eq!(rows, ours(qkv.dim(0), "attention"), "attention: spans must cover every row");
        if rows == spans.len() {
            let output = with_values(qkv, |qkv| with_values(rope, |rope| attend_rows(qkv, rope, shape, kv, spans)));
            return ours(Tensor::from_vec(output, (rows, shape.heads * shape.head_dim), &Device::Cpu), "attention");
        }
        let mut first = 0;
        let mut queries = Vec::with_capacity(spans.len());
        for span in spans {
            let rows = ours(qkv.narrow(0, first, span.rows), "attention rows");
            queries.push(ours(rotate_and_store(&rows, rope, shape, kv, span), "attention"));
            first += span.rows;
        }
        // Attention mostly moves memory, so process several sequences in parallel.
        let kv = &*kv;
        let outputs = spans.par_iter().zip(queries).map(|(span, q)| ours(attend(&q, shape, kv, span), "attention"));
        let outputs: Vec<Tensor> = outputs.collect();
        ours(Tensor::cat(&outputs, 0), "attention")
    }

    fn glu(&mut self, gate_up: &Tensor, activation: Activation) -> Tensor {
        let y = match activation {
            Activation::Silu => with_values(gate_up, |values| gated(values, ours(gate_up.dim(1), "glu") / 2)),
            // candle's `gelu` is the tanh approximation.
            Activation::GeluTanh => gate_up.chunk(2, 1).and_then(|halves| halves[0].contiguous()?.gelu()? * &halves[1]),
        };
        ours(y, "glu")
    }

    fn add_bias(&mut self, x: &mut Tensor, bias: &Tensor) {
        *x = ours(x.broadcast_add(bias), "add_bias");
    }

    fn norm_heads(&mut self, qkv: &mut Tensor, query: &Tensor, key: &Tensor, shape: AttentionShape, eps: f32) {
        *qkv = ours(norm_heads(qkv, query, key, shape, eps), "norm_heads");
    }

    fn soft_cap(&mut self, x: &mut Tensor, cap: f32) {
        *x = ours(capped(x, cap), "soft_cap");
    }

    fn add_assign(&mut self, x: &mut Tensor, y: &Tensor) {
        *x = ours(&*x + y, "add");
    }

    fn select_rows(&mut self, x: &Tensor, rows: &[usize]) -> Tensor {
        let ids: Vec<u32> = rows.iter().map(|&row| u32::try_from(row).expect("a row number fits u32")).collect();
        ours(Tensor::new(ids, &Device::Cpu).and_then(|ids| x.index_select(&ids, 0)), "select_rows")
    }
}

impl Choose for CandleOps {
    type Tokens = Vec<u32>;
    type Draw = Infallible;

    fn ahead(&self) -> usize {
        0
    }

    fn new_draw(&mut self, _: Rules, _: usize, _: Option<&[Past]>) -> Result<Option<Infallible>> {
        Ok(None)
    }

    fn choose(&mut self, logits: &Tensor, choices: &[Choice<'_, Infallible>]) -> Result<Vec<u32>> {
        let values = CandleOps::values(logits);
        Ok(values.chunks_exact(values.len() / choices.len()).map(most_likely).collect())
    }

    fn embedding_of(&mut self, table: &CandleMatrix, sources: &[Source], tokens: &Vec<u32>, scale: f32) -> Tensor {
        let id = |source: &Source| match *source {
            Source::Id(id) => id,
            Source::Chosen(row) => tokens[row],
        };
        self.embedding(table, &sources.iter().map(id).collect::<Vec<_>>(), scale)
    }

    async fn tokens(&mut self, tokens: Vec<u32>) -> Result<Vec<u32>> {
        Ok(tokens)
    }
}

/// The column of the largest value, the first among equals; NaN is never chosen.
fn most_likely(logits: &[f32]) -> u32 {
    let best = logits.iter().enumerate().filter(|(_, v)| !v.is_nan()).reduce(|a, b| if b.1 > a.1 { b } else { a });
    best.map_or(0, |(column, _)| column as u32)
}

/// `cap * tanh(x / cap)`.
fn capped(x: &Tensor, cap: f32) -> candle_core::Result<Tensor> {
    (x / f64::from(cap))?.tanh()? * f64::from(cap)
}

/// RMS norm of each query head and each key head of `[rows, q | k | v]`.
fn norm_heads(
    qkv: &Tensor,
    query: &Tensor,
    key: &Tensor,
    shape: AttentionShape,
    eps: f32,
) -> candle_core::Result<Tensor> {
    let AttentionShape { heads, kv_heads, head_dim, .. } = shape;
    let rows = qkv.dim(0)?;
    let normed_heads = |first: usize, count: usize, weight: &Tensor| {
        let part = qkv.narrow(1, first * head_dim, count * head_dim)?.contiguous()?;
        let normed = with_values(weight, |weight| with_values(&part, |part| normed(part, weight, eps)));
        Tensor::from_vec(normed, (rows, count * head_dim), &Device::Cpu)
    };
    let values = qkv.narrow(1, (heads + kv_heads) * head_dim, kv_heads * head_dim)?;
    Tensor::cat(&[normed_heads(0, heads, query)?, normed_heads(heads, kv_heads, key)?, values], 1)?.contiguous()
}

/// Rotates the queries and keys of one sequence's rows `[rows, q | k | v]`, and stores keys and values. Returns the scaled queries
/// `[heads, rows, head_dim]`.
fn rotate_and_store(
    qkv: &Tensor,
    rope: &Tensor,
    shape: AttentionShape,
    kv: &mut CandleKv,
    span: &OwnSpan,
) -> candle_core::Result<Tensor> {
    let AttentionShape { heads, kv_heads, head_dim, rotary_dim, scale, .. } = shape;
    let heads_of = |first: usize, count: usize| {
        // [heads, rows, head_dim]
        qkv.narrow(1, first * head_dim, count * head_dim)?
            .reshape((span.rows, count, head_dim))?
            .transpose(0, 1)?
            .contiguous()
    };
    let pairs = rope.narrow(0, span.past_len, span.rows)?.reshape((span.rows, rotary_dim / 2, 2))?;
    let (cos, sin) =
        (pairs.narrow(2, 0, 1)?.squeeze(2)?.contiguous()?, pairs.narrow(2, 1, 1)?.squeeze(2)?.contiguous()?);
    let rotate = |x: Tensor| {
        let turned = x.narrow(2, 0, rotary_dim)?.contiguous()?.unsqueeze(0)?;
        let turned = candle_nn::rotary_emb::rope(&turned, &cos, &sin)?.squeeze(0)?;
        if rotary_dim == head_dim {
            return Ok(turned);
        }
        Tensor::cat(&[&turned, &x.narrow(2, rotary_dim, head_dim - rotary_dim)?], 2)?.contiguous()
    };
    let (new_keys, new_values) = (rotate(heads_of(heads, kv_heads)?)?, heads_of(heads + kv_heads, kv_heads)?);
    with_values(&new_keys, |keys| with_values(&new_values, |values| kv.put(span, keys, values)));
    rotate(heads_of(0, heads)?)? * f64::from(scale)
}

/// Attention of one sequence's scaled queries `[heads, rows, head_dim]`; returns `[rows, heads * head_dim]`.
fn attend(queries: &Tensor, shape: AttentionShape, kv: &CandleKv, span: &OwnSpan) -> candle_core::Result<Tensor> {
    let AttentionShape { heads, kv_heads, head_dim, soft_cap, window, .. } = shape;
    let (rows, past) = (span.rows, span.past_len);
    let (all_keys, all_values) = kv.tensors(span)?;

    let group = heads / kv_heads;
    let mut outputs = Vec::new();
    for first in (0..rows).step_by(QUERY_BLOCK) {
        let count = QUERY_BLOCK.min(rows - first);
        // The range of keys that the rows of the block see.
        let begin = first_key(past + first, window);
        let total = past + first + count - begin;
        let keys = all_keys.narrow(1, begin, total)?;
        let values = all_values.narrow(1, begin, total)?;
        // Stack the queries of the heads that share keys: [kv_heads, group * count, head_dim].
        let block = queries.narrow(1, first, count)?.contiguous()?.reshape((kv_heads, group * count, head_dim))?;
        let mut scores = block.matmul(&keys.t()?)?; // [kv_heads, group * count, total]
        if let Some(cap) = soft_cap {
            scores = capped(&scores, cap)?;
        }
        scores.inplace_op1(&CausalSoftmax { count, total, window })?;
        let weighted = scores.matmul(&values)?;
        outputs.push(weighted.reshape((heads, count, head_dim))?.transpose(0, 1)?.reshape((count, heads * head_dim))?);
    }
    Tensor::cat(&outputs, 0)
}

/// Softmax of scores `[rows, total]` with a causal mask. The rows are groups of `count` queries. Query `i` of a group has position
/// `total - count + i`, and sees the keys up to its own, within its window.
struct CausalSoftmax {
    count: usize,
    total: usize,
    window: Option<usize>,
}

impl InplaceOp1 for CausalSoftmax {
    fn name(&self) -> &'static str {
        "causal_softmax"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        /// Fewest rows per thread.
        const ROWS: usize = 32;
        let (start, end) = layout.contiguous_offsets().expect("a product is contiguous");
        let CpuStorage::F32(scores) = storage else { panic!("scores are f32") };
        let rows = scores[start..end].par_chunks_exact_mut(self.total).with_min_len(ROWS).enumerate();
        rows.for_each(|(row, scores)| {
            let own = self.total - self.count + row % self.count;
            let first = first_key(own, self.window);
            scores[..first].fill(0.0);
            scores[own + 1..].fill(0.0);
            softmax(&mut scores[first..=own]);
        });
        Ok(())
    }
}

/// RMS norm of each row, with weights `weight`.
fn normed(rows: &[f32], weight: &[f32], eps: f32) -> Vec<f32> {
    let mut output = vec![0.0; rows.len()];
    let parts = parts(rows.len());
    if parts == 1 {
        rms_norm(rows, weight, eps, &mut output);
    } else {
        let each = (rows.len() / weight.len()).div_ceil(4 * parts) * weight.len();
        let outputs = output.par_chunks_mut(each).zip(rows.par_chunks(each));
        outputs.for_each(|(output, rows)| rms_norm(rows, weight, eps, output));
    }
    output
}

/// `silu(gate) * up` for rows `[gate | up]` of `2 * inner` numbers.
fn gated(rows: &[f32], inner: usize) -> candle_core::Result<Tensor> {
    /// Cost of an exponential in multiplications.
    const EXPONENTIAL: usize = 16;
    let mut output = vec![0.0; rows.len() / 2];
    let parts = parts(EXPONENTIAL * output.len());
    if parts == 1 {
        silu_gate(rows, inner, &mut output);
    } else {
        // Several parts per thread, to balance the load.
        let each = (rows.len() / (2 * inner)).div_ceil(4 * parts);
        let outputs = output.par_chunks_mut(each * inner).zip(rows.par_chunks(each * 2 * inner));
        outputs.for_each(|(output, rows)| silu_gate(rows, inner, output));
    }
    Tensor::from_vec(output, (rows.len() / (2 * inner), inner), &Device::Cpu)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scores do not depend on the order of a head's elements. So a rotation of the pair (0, 1) of four elements equals a rotation
    /// of the pairs (0, 2) and (1, 3) of the reordered head, with angle 0 for the second pair.
    #[test]
    fn a_partial_rotation_equals_a_full_one_of_reordered_heads() {
        let (rows, width) = (5, 12);
        let values: Vec<f32> = (0..rows * width).map(|i| (i as f32 * 0.7).sin()).collect();
        let reordered: Vec<f32> = values
            .chunks_exact(width)
            .flat_map(|row| [0, 2, 1, 3, 4, 6, 5, 7, 8, 9, 10, 11].map(|column: usize| row[column]))
            .collect();
        let angles: Vec<(f32, f32)> = (0..rows).map(|position| (position as f32 * 0.9).sin_cos()).collect();
        let partial: Vec<f32> = angles.iter().flat_map(|&(sin, cos)| [cos, sin]).collect();
        let full: Vec<f32> = angles.iter().flat_map(|&(sin, cos)| [cos, sin, 1.0, 0.0]).collect();

        // All rows at once, and a few rows at a time.
        let attention = |values: &[f32], table: &[f32], rotary_dim: usize, rows_at_a_time: usize| {
            let mut ops = CandleOps::default();
            let soft_cap = Some(0.8);
            let shape = AttentionShape {
                heads: 1,
                kv_heads: 1,
                head_dim: 4,
                rotary_dim,
                scale: 0.5,
                soft_cap,
                window: Some(3),
            };
            let rope = ops.upload(rows, rotary_dim, table).unwrap();
            let mut kv = ops.new_kv(KvShape { kv_heads: 1, pages: 2, head_dim: 4 }).unwrap();
            let mut found = Vec::new();
            for (i, values) in values.chunks(rows_at_a_time * width).enumerate() {
                let count = values.len() / width;
                let qkv = ops.upload(count, width, values).unwrap();
                let span = RowSpan { rows: count, past_len: i * rows_at_a_time, pages: &[1] };
                let rows = ops.place_rows(&[span]);
                found.extend(CandleOps::values(&ops.attention(&qkv, &rope, shape, &mut kv, &rows)));
            }
            found
        };
        let expected = attention(&reordered, &full, 4, rows);
        for rows_at_a_time in [1, 2, rows] {
            let found = attention(&values, &partial, 2, rows_at_a_time);
            let difference = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(difference < 1e-6, "{rows_at_a_time} rows at a time differ by {difference}");
        }
    }
}
