//! [`CandleKv`]: keys and values of a layer on the CPU, and attention for one new row per sequence.
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
use crate::ops::{AttentionShape, KvShape, PAGE, RowSpan};

/// Number of values per scale in 8-bit caches.
const GROUP: usize = 32;

/// Keys and values of one layer, each `[kv_heads, pages, PAGE, head_dim]`: a sequence on consecutive pages is one slice of a head.
#[derive(Debug)]
pub struct CandleKv {
    shape: KvShape,
    keys: Rows,
    values: Rows,
}

/// The rows of a batch that belong to one sequence: [`RowSpan`], owned.
#[derive(Debug)]
pub(super) struct OwnSpan {
    pub(super) rows: usize,
    pub(super) past_len: usize,
    pages: Vec<u32>,
}

/// The rows of a batch.
#[derive(Debug)]
pub struct CandleRows {
    pub(super) spans: Vec<OwnSpan>,
}

impl CandleRows {
    pub(super) fn new(spans: &[RowSpan<'_>]) -> CandleRows {
        let own = |span: &RowSpan<'_>| OwnSpan { rows: span.rows, past_len: span.past_len, pages: span.pages.to_vec() };
        CandleRows { spans: spans.iter().map(own).collect() }
    }

    /// The number of rows.
    pub(super) fn count(&self) -> usize {
        self.spans.iter().map(|span| span.rows).sum()
    }
}

impl OwnSpan {
    /// The ranges of rows of a head in the pool that hold these positions, in order.
    fn runs(&self, positions: Range<usize>) -> Vec<Range<usize>> {
        let mut runs: Vec<Range<usize>> = Vec::new();
        let mut position = positions.start;
        while position < positions.end {
            let end = positions.end.min((position / PAGE + 1) * PAGE);
            let first = self.pages[position / PAGE] as usize * PAGE + position % PAGE;
            match runs.last_mut() {
                Some(run) if run.end == first => run.end += end - position,
                _ => runs.push(first..first + end - position),
            }
            position = end;
        }
        runs
    }
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
        let rows = Rows::new(kv, shape.kv_heads * shape.pages * PAGE, shape.head_dim);
        CandleKv { shape, keys: rows.clone(), values: rows }
    }

    /// Writes rotated `keys` and `values`, each `[kv_heads, span.rows, head_dim]`.
    pub(super) fn put(&mut self, span: &OwnSpan, keys: &[f32], values: &[f32]) {
        let KvShape { kv_heads, pages, head_dim } = self.shape;
        let runs = span.runs(span.past_len..span.past_len + span.rows);
        for (cache, new) in [(&mut self.keys, keys), (&mut self.values, values)] {
            for (head, mut new) in new.chunks_exact(new.len() / kv_heads).enumerate() {
                for run in &runs {
                    let part;
                    (part, new) = new.split_at(run.len() * head_dim);
                    cache.put(head * pages * PAGE + run.start, head_dim, part);
                }
            }
        }
    }

    /// Keys and values of all positions of a span's sequence, each `[kv_heads, positions, head_dim]`.
    pub(super) fn tensors(&self, span: &OwnSpan) -> candle_core::Result<(Tensor, Tensor)> {
        let KvShape { kv_heads, head_dim, .. } = self.shape;
        let len = span.past_len + span.rows;
        let tensor = |cache: &Rows| {
            let mut all = Vec::with_capacity(kv_heads * len * head_dim);
            for head in 0..kv_heads {
                all.extend_from_slice(&self.head_rows(cache, span, head, 0..len));
            }
            Tensor::from_vec(all, (kv_heads, len, head_dim), &Device::Cpu)
        };
        Ok((tensor(&self.keys)?, tensor(&self.values)?))
    }

    /// Keys and values of a head at `positions`, each `[positions, head_dim]`.
    fn head(&self, span: &OwnSpan, head: usize, positions: Range<usize>) -> (Cow<'_, [f32]>, Cow<'_, [f32]>) {
        let keys = self.head_rows(&self.keys, span, head, positions.clone());
        (keys, self.head_rows(&self.values, span, head, positions))
    }

    /// Rows of a head of `cache` at `positions`: `[positions, head_dim]`.
    fn head_rows<'a>(&self, cache: &'a Rows, span: &OwnSpan, head: usize, positions: Range<usize>) -> Cow<'a, [f32]> {
        let KvShape { pages, head_dim, .. } = self.shape;
        let first = head * pages * PAGE;
        let of_run = |run: &Range<usize>| cache.values(first + run.start..first + run.end, head_dim);
        match &span.runs(positions)[..] {
            [run] => of_run(run),
            runs => Cow::Owned(runs.iter().flat_map(|run| of_run(run).into_owned()).collect()),
        }
    }
}

/// The first position in the window of the query at `position`.
pub(super) fn first_key(position: usize, window: Option<usize>) -> usize {
    window.map_or(0, |window| (position + 1).saturating_sub(window))
}

/// Attention of one row `[q | k | v]` per span. Stores its keys and values in `kv`, and returns `[spans, heads * head_dim]`. `rope`
/// is `[positions, rotary_dim / 2, (cos, sin)]`.
pub(super) fn attend_rows(
    qkv: &[f32],
    rope: &[f32],
    shape: AttentionShape,
    kv: &mut CandleKv,
    spans: &[OwnSpan],
) -> Vec<f32> {
    let AttentionShape { heads, kv_heads, head_dim, rotary_dim, window, .. } = shape;
    let group = heads / kv_heads;
    let mut rows = qkv.to_vec();
    let width = (heads + 2 * kv_heads) * head_dim;
    for (row, span) in rows.chunks_exact_mut(width).zip(spans) {
        let table = &rope[span.past_len * rotary_dim..][..rotary_dim];
        let (rotated, values) = row.split_at_mut((heads + kv_heads) * head_dim);
        rotated.chunks_exact_mut(head_dim).for_each(|head| rotate(&mut head[..rotary_dim], table));
        kv.put(span, &rotated[heads * head_dim..], values);
    }
    let kv = &*kv;
    // Divide the heads of all sequences among threads if the texts are long.
    let all = spans.len() * kv_heads;
    let seen = spans.iter().map(|span| span.past_len + 1 - first_key(span.past_len, window));
    let each = all.div_ceil(parts(2 * seen.sum::<usize>() * heads * head_dim));
    let outputs = in_parts(all.div_ceil(each), |part| {
        let (mut outputs, mut weights) = (Vec::new(), Vec::new());
        for i in part * each..((part + 1) * each).min(all) {
            let (span, kv_head) = (i / kv_heads, i % kv_heads);
            let position = spans[span].past_len;
            let (keys, values) = kv.head(&spans[span], kv_head, first_key(position, window)..position + 1);
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
