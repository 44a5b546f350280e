//! [`CandleKv`]: the cache of `candle.rs`, and attention over it for one new row per sequence.
//!
//! One row is a handful of dot products per head, for which a candle operation costs more than they do; many rows are
//! matrix products, which candle does.

use std::ops::Range;

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use super::{AttentionShape, KvShape, Span};

/// Keys and values of one layer, `[kv_heads, capacity, head_dim]` each.
#[derive(Debug)]
pub struct CandleKv {
    shape: KvShape,
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl CandleKv {
    pub(super) fn new(shape: KvShape) -> CandleKv {
        let zeros = vec![0.0; shape.kv_heads * shape.capacity * shape.head_dim];
        CandleKv { shape, keys: zeros.clone(), values: zeros }
    }

    /// Puts `keys` (rotated) and `values`, `[kv_heads, rows, head_dim]` each, at the positions from `past` on.
    pub(super) fn put(&mut self, past: usize, keys: &[f32], values: &[f32]) {
        let KvShape { kv_heads, capacity, head_dim } = self.shape;
        let part = keys.len() / kv_heads;
        assert!(past * head_dim + part <= capacity * head_dim, "the cache is full at {capacity} tokens");
        for (cache, new) in [(&mut self.keys, keys), (&mut self.values, values)] {
            for (cache, new) in cache.chunks_exact_mut(capacity * head_dim).zip(new.chunks_exact(part)) {
                cache[past * head_dim..][..part].copy_from_slice(new);
            }
        }
    }

    /// Keys and values of the first `len` positions, `[kv_heads, len, head_dim]` each.
    pub(super) fn tensors(&self, len: usize) -> candle_core::Result<(Tensor, Tensor)> {
        let KvShape { kv_heads, capacity, head_dim } = self.shape;
        let tensor = |cache: &[f32]| {
            let heads = cache.chunks_exact(capacity * head_dim).flat_map(|head| &head[..len * head_dim]);
            Tensor::from_iter(heads.copied(), &Device::Cpu)?.reshape((kv_heads, len, head_dim))
        };
        Ok((tensor(&self.keys)?, tensor(&self.values)?))
    }

    /// Keys and values of a head at `positions`, `[positions, head_dim]` each.
    fn head(&self, head: usize, positions: Range<usize>) -> (&[f32], &[f32]) {
        let KvShape { capacity, head_dim, .. } = self.shape;
        let range = (head * capacity + positions.start) * head_dim..(head * capacity + positions.end) * head_dim;
        (&self.keys[range.clone()], &self.values[range])
    }
}

/// The first position whose key the query at `position` sees.
pub(super) fn first_key(position: usize, window: Option<usize>) -> usize {
    window.map_or(0, |window| (position + 1).saturating_sub(window))
}

/// Attention of one row `[q | k | v]` per span: appends its keys and values, returns `[spans, heads * head_dim]`.
///
/// `rope`: `[positions, rotary_dim / 2, (cos, sin)]`.
pub(super) fn attend_rows(
    qkv: &[f32],
    rope: &[f32],
    shape: AttentionShape,
    spans: &mut [Span<'_, CandleKv>],
) -> Vec<f32> {
    let AttentionShape { heads, kv_heads, head_dim, rotary_dim, window, .. } = shape;
    let group = heads / kv_heads;
    let mut rows = qkv.to_vec();
    let width = (heads + 2 * kv_heads) * head_dim;
    for (row, span) in rows.chunks_exact_mut(width).zip(spans.iter_mut()) {
        let table = &rope[span.past_len * rotary_dim..][..rotary_dim];
        let (rotated, values) = row.split_at_mut((heads + kv_heads) * head_dim);
        rotated.chunks_exact_mut(head_dim).for_each(|head| rotate(&mut head[..rotary_dim], table));
        span.kv.put(span.past_len, &rotated[heads * head_dim..], values);
    }
    let caches: Vec<(&CandleKv, usize)> = spans.iter().map(|span| (&*span.kv, span.past_len)).collect();
    let mut output = vec![0.0; caches.len() * heads * head_dim];
    output.par_chunks_exact_mut(group * head_dim).enumerate().for_each(|(i, output)| {
        let (span, kv_head) = (i / kv_heads, i % kv_heads);
        let (kv, position) = caches[span];
        let (keys, values) = kv.head(kv_head, first_key(position, window)..position + 1);
        let queries = &rows[span * width + kv_head * group * head_dim..][..group * head_dim];
        let mut weights = vec![0.0; keys.len() / head_dim];
        for (query, output) in queries.chunks_exact(head_dim).zip(output.chunks_exact_mut(head_dim)) {
            attend(query, keys, values, shape, &mut weights, output);
        }
    });
    output
}

/// Rotates the pairs `(x[i], x[i + d / 2])` by the angles whose `(cos, sin)` are in `table`.
fn rotate(x: &mut [f32], table: &[f32]) {
    let (low, high) = x.split_at_mut(x.len() / 2);
    for ((a, b), angle) in low.iter_mut().zip(high).zip(table.chunks_exact(2)) {
        let (cos, sin) = (angle[0], angle[1]);
        (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
    }
}

/// `softmax(scale * K q) V`, the scores capped, with `weights` as scratch of one number per key.
fn attend(query: &[f32], keys: &[f32], values: &[f32], shape: AttentionShape, weights: &mut [f32], output: &mut [f32]) {
    let AttentionShape { head_dim, scale, soft_cap, .. } = shape;
    for (weight, key) in weights.iter_mut().zip(keys.chunks_exact(head_dim)) {
        *weight = scale * dot(query, key);
    }
    if let Some(cap) = soft_cap {
        weights.iter_mut().for_each(|score| *score = cap * (*score / cap).tanh());
    }
    let max = weights.iter().fold(f32::NEG_INFINITY, |max, &w| max.max(w));
    let mut sum = 0.0;
    for weight in weights.iter_mut() {
        *weight = (*weight - max).exp();
        sum += *weight;
    }
    for (&weight, value) in weights.iter().zip(values.chunks_exact(head_dim)) {
        let weight = weight / sum;
        output.iter_mut().zip(value).for_each(|(o, v)| *o += weight * v);
    }
}

/// Eight sums, so that the compiler may use vectors.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0; 8];
    let (mut a8, mut b8) = (a.chunks_exact(8), b.chunks_exact(8));
    for (a, b) in a8.by_ref().zip(b8.by_ref()) {
        for lane in 0..8 {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let rest: f32 = a8.remainder().iter().zip(b8.remainder()).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}
