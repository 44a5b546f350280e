//! Attention in plain loops.

use super::AttentionShape;
use crate::{RowSpan, kv::padded};

/// Attention of the rows of some sequences over their pages.
///
/// `q`, `y`: [rows, heads, head_dim]. `kv`: [pages, 2, kv_heads, PAGE, head_dim padded to a multiple of 8].
pub fn attention(shape: AttentionShape, spans: &[RowSpan<'_>], q: &[f32], kv: &[f32], y: &mut [f32]) {
    let AttentionShape { heads, kv_heads, head_dim, scale, soft_cap, window, .. } = shape;
    let positions =
        spans.iter().flat_map(|span| (span.past_len..span.past_len + span.rows).map(move |position| (span, position)));
    let of_heads = positions.flat_map(|row| (0..heads).map(move |head| (row, head)));
    for (((span, position), head), (q, y)) in of_heads.zip(q.chunks_exact(head_dim).zip(y.chunks_exact_mut(head_dim))) {
        let stored = |is_value: bool, key: usize| {
            let row = span.pool_row(kv_heads, is_value, head / (heads / kv_heads), key);
            &kv[row * padded(head_dim)..][..head_dim]
        };
        let keys = position + 1;
        let first = window.map_or(0, |window| keys.saturating_sub(window));
        let mut scores: Vec<f32> = (first..keys)
            .map(|key| scale * q.iter().zip(stored(false, key)).map(|(q, k)| q * k).sum::<f32>())
            .collect();
        if let Some(cap) = soft_cap {
            crate::soft_cap::soft_cap(&mut scores, cap);
        }
        let m = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f32 = scores.iter().map(|s| (s - m).exp()).sum();
        y.fill(0.0);
        for (i, score) in scores.iter().enumerate() {
            let p = (score - m).exp() / sum;
            for (y, v) in y.iter_mut().zip(stored(true, first + i)) {
                *y += p * v;
            }
        }
    }
}

/// Joins the splits of each row and head. `parts`: [rows * heads, splits, head_dim + 2]. The last two values of a split are its largest
/// score and its sum of exponentials. Result: [rows * heads, head_dim].
pub fn join_splits(parts: &[f32], splits: usize, head_dim: usize) -> Vec<f32> {
    let mut y = Vec::new();
    for parts in parts.chunks_exact(splits * (head_dim + 2)) {
        let splits = || parts.chunks_exact(head_dim + 2);
        let m = splits().map(|part| part[head_dim]).fold(f32::NEG_INFINITY, f32::max);
        let sum: f32 = splits().map(|part| (part[head_dim] - m).exp() * part[head_dim + 1]).sum();
        y.extend((0..head_dim).map(|d| splits().map(|part| (part[head_dim] - m).exp() * part[d]).sum::<f32>() / sum));
    }
    y
}
