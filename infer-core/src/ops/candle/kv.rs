//! [`CandleKv`]: the KV cache on the CPU, and attention for one new row per sequence.
//!
//! One row needs a few dot products per head. They cost less than a candle operation, so they are computed here. `mod.rs`
//! computes many rows as matrix products.

use std::{borrow::Cow, ops::Range};

use candle_core::{Device, Tensor};
use half::{f16, slice::HalfFloatSliceExt};
use webgpu_kernels::KvDtype;

use super::{
    threads::{in_parts, parts},
    vectorized::attend,
};
use crate::ops::{AttentionShape, KvShape, Span};

/// Number of values per scale in 8-bit caches.
const GROUP: usize = 32;

/// Keys and values of one layer, each `[kv_heads, capacity, head_dim]`.
#[derive(Debug)]
pub struct CandleKv {
    shape: KvShape,
    keys: Rows,
    values: Rows,
}

/// Rows of `head_dim` values, in each number type of [`KvDtype`].
#[derive(Debug, Clone)]
enum Rows {
    F32(Vec<f32>),
    F16(Vec<f16>),
    /// `value = code * scale`, one scale per [`GROUP`] values of a row.
    Q8 {
        codes: Vec<i8>,
        scales: Vec<f32>,
    },
}

impl Rows {
    /// Rows of zeros.
    fn new(kv: KvDtype, rows: usize, head_dim: usize) -> Rows {
        let len = rows * head_dim;
        match kv {
            KvDtype::F32 => Rows::F32(vec![0.0; len]),
            KvDtype::F16 => Rows::F16(vec![f16::ZERO; len]),
            KvDtype::Q8 => Rows::Q8 { codes: vec![0; len], scales: vec![0.0; rows * head_dim.div_ceil(GROUP)] },
        }
    }

    /// Writes whole rows of `head_dim` values, starting at row `first`.
    fn put(&mut self, first: usize, head_dim: usize, new: &[f32]) {
        let start = first * head_dim;
        match self {
            Rows::F32(values) => values[start..][..new.len()].copy_from_slice(new),
            Rows::F16(values) => {
                // Clamp, like on a GPU: an infinite key would make every score NaN.
                let largest = f16::MAX.to_f32();
                for (value, new) in values[start..].iter_mut().zip(new) {
                    *value = f16::from_f32(new.clamp(-largest, largest));
                }
            }
            Rows::Q8 { codes, scales } => {
                let scales = scales[first * head_dim.div_ceil(GROUP)..].iter_mut();
                let codes = codes[start..][..new.len()].chunks_exact_mut(head_dim);
                let groups = codes.zip(new.chunks_exact(head_dim));
                let groups = groups.flat_map(|(codes, new)| codes.chunks_mut(GROUP).zip(new.chunks(GROUP)));
                for (scale, (codes, new)) in scales.zip(groups) {
                    *scale = to_eight_bits(new, codes);
                }
            }
        }
    }

    /// The values of a range of rows, `[rows, head_dim]`.
    fn values(&self, rows: Range<usize>, head_dim: usize) -> Cow<'_, [f32]> {
        let range = rows.start * head_dim..rows.end * head_dim;
        match self {
            Rows::F32(values) => Cow::Borrowed(&values[range]),
            Rows::F16(values) => {
                let mut wide = vec![0.0; range.len()];
                values[range].convert_to_f32_slice(&mut wide);
                Cow::Owned(wide)
            }
            Rows::Q8 { codes, scales } => {
                let scales = &scales[rows.start * head_dim.div_ceil(GROUP)..];
                let groups = codes[range].chunks_exact(head_dim).flat_map(|row| row.chunks(GROUP)).zip(scales);
                Cow::Owned(
                    groups.flat_map(|(codes, scale)| codes.iter().map(move |&code| f32::from(code) * scale)).collect(),
                )
            }
        }
    }
}

/// Rounds a group to multiples of a scale, from -127 to 127. Returns the scale.
fn to_eight_bits(values: &[f32], codes: &mut [i8]) -> f32 {
    let most = values.iter().fold(0f32, |most, value| most.max(value.abs()));
    // Not subnormal: some GPUs flush subnormal numbers to zero. The kernels use the same limit.
    let scale = (most / 127.0).max(1.2e-38);
    for (code, value) in codes.iter_mut().zip(values) {
        *code = (value / scale).round_ties_even().clamp(-127.0, 127.0) as i8;
    }
    scale
}

impl CandleKv {
    pub(super) fn new(shape: KvShape, kv: KvDtype) -> CandleKv {
        let rows = Rows::new(kv, shape.kv_heads * shape.capacity, shape.head_dim);
        CandleKv { shape, keys: rows.clone(), values: rows }
    }

    /// Writes rotated `keys` and `values`, each `[kv_heads, rows, head_dim]`, starting at position `past`.
    pub(super) fn put(&mut self, past: usize, keys: &[f32], values: &[f32]) {
        let KvShape { kv_heads, capacity, head_dim } = self.shape;
        let part = keys.len() / kv_heads;
        assert!(past * head_dim + part <= capacity * head_dim, "the cache is full at {capacity} tokens");
        for (cache, new) in [(&mut self.keys, keys), (&mut self.values, values)] {
            for (head, new) in new.chunks_exact(part).enumerate() {
                cache.put(head * capacity + past, head_dim, new);
            }
        }
    }

    /// Keys and values of the first `len` positions, each `[kv_heads, len, head_dim]`.
    pub(super) fn tensors(&self, len: usize) -> candle_core::Result<(Tensor, Tensor)> {
        let KvShape { kv_heads, capacity, head_dim } = self.shape;
        let tensor = |cache: &Rows| {
            let mut all = Vec::with_capacity(kv_heads * len * head_dim);
            for head in 0..kv_heads {
                all.extend_from_slice(&cache.values(head * capacity..head * capacity + len, head_dim));
            }
            Tensor::from_vec(all, (kv_heads, len, head_dim), &Device::Cpu)
        };
        Ok((tensor(&self.keys)?, tensor(&self.values)?))
    }

    /// Keys and values of a head at `positions`, each `[positions, head_dim]`.
    fn head(&self, head: usize, positions: Range<usize>) -> (Cow<'_, [f32]>, Cow<'_, [f32]>) {
        let KvShape { capacity, head_dim, .. } = self.shape;
        let rows = head * capacity + positions.start..head * capacity + positions.end;
        (self.keys.values(rows.clone(), head_dim), self.values.values(rows, head_dim))
    }
}

/// The first position in the window of the query at `position`.
pub(super) fn first_key(position: usize, window: Option<usize>) -> usize {
    window.map_or(0, |window| (position + 1).saturating_sub(window))
}

/// Attention of one row `[q | k | v]` per span. Appends its keys and values, and returns `[spans, heads * head_dim]`. `rope` is
/// `[positions, rotary_dim / 2, (cos, sin)]`.
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
    // Divide the heads of all sequences among threads if the texts are long.
    let all = caches.len() * kv_heads;
    let seen = caches.iter().map(|(_, position)| position + 1 - first_key(*position, window));
    let each = all.div_ceil(parts(2 * seen.sum::<usize>() * heads * head_dim));
    let outputs = in_parts(all.div_ceil(each), |part| {
        let (mut outputs, mut weights) = (Vec::new(), Vec::new());
        for i in part * each..((part + 1) * each).min(all) {
            let (span, kv_head) = (i / kv_heads, i % kv_heads);
            let (kv, position) = caches[span];
            let (keys, values) = kv.head(kv_head, first_key(position, window)..position + 1);
            let queries = &rows[span * width + kv_head * group * head_dim..][..group * head_dim];
            weights.resize(keys.len() / head_dim, 0.0);
            let first = outputs.len();
            outputs.resize(first + group * head_dim, 0.0);
            for (query, output) in queries.chunks_exact(head_dim).zip(outputs[first..].chunks_exact_mut(head_dim)) {
                attend(query, &keys, &values, shape, &mut weights, output);
            }
        }
        outputs
    });
    outputs.concat()
}

/// Rotates the pairs `(x[i], x[i + d / 2])` by the angles in `table`, given as `(cos, sin)`.
fn rotate(x: &mut [f32], table: &[f32]) {
    let (low, high) = x.split_at_mut(x.len() / 2);
    for ((a, b), angle) in low.iter_mut().zip(high).zip(table.chunks_exact(2)) {
        let (cos, sin) = (angle[0], angle[1]);
        (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes rows in the middle of a cache, with a head width that is no multiple of the group size.
    #[test]
    fn rows_are_rounded_to_their_number_type() {
        let head_dim = 40;
        let new: Vec<f32> =
            (0..2 * head_dim).map(|i| (i as f32 * 0.37).sin() * if i < 40 { 1e5 } else { 1.0 }).collect();
        let back = |kv| {
            let mut rows = Rows::new(kv, 5, head_dim);
            rows.put(2, head_dim, &new);
            let zeros = |rows: &Rows, which| rows.values(which, head_dim).iter().all(|&value| value == 0.0);
            assert!(zeros(&rows, 0..2) && zeros(&rows, 4..5), "{kv:?}: other rows were written");
            rows.values(2..4, head_dim).into_owned()
        };
        assert_eq!(back(KvDtype::F32), new);
        let halves = new.iter().map(|value| f16::from_f32(value.clamp(-65504.0, 65504.0)).to_f32());
        assert_eq!(back(KvDtype::F16), halves.collect::<Vec<_>>());
        let eight_bits = new.chunks(head_dim).flat_map(|row| row.chunks(GROUP)).flat_map(|group| {
            let scale = group.iter().fold(0f32, |most, value| most.max(value.abs())) / 127.0;
            group.iter().map(move |value| (value / scale).round_ties_even() * scale)
        });
        assert_eq!(back(KvDtype::Q8), eight_bits.collect::<Vec<_>>());
    }
}
