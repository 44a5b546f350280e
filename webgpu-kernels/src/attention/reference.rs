//! The same in plain loops.

use crate::kv::padded;

/// Sizes that the buffers' lengths do not tell.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Position of the first row.
    pub past_len: usize,
    /// Tokens that the cache has room for.
    pub capacity: usize,
    /// Factor on `q . k`.
    pub scale: f32,
    /// Cap `c` of the scaled scores: `c * tanh(score / c)`.
    pub soft_cap: Option<f32>,
    /// How many keys a row sees, the last ones, its own among them. `None`: all.
    pub window: Option<usize>,
}

/// `q`, `y`: [rows, heads, head_dim]. `k`, `v`: [kv_heads, capacity, head_dim padded to a multiple of 8].
pub fn attention(shape: Shape, q: &[f32], k: &[f32], v: &[f32], y: &mut [f32]) {
    let Shape { heads, kv_heads, head_dim, past_len, capacity, scale, soft_cap, window } = shape;
    let cached = |head: usize, key: usize| (head / (heads / kv_heads) * capacity + key) * padded(head_dim);
    for (i, (q, y)) in q.chunks_exact(head_dim).zip(y.chunks_exact_mut(head_dim)).enumerate() {
        let (row, head) = (i / heads, i % heads);
        let keys = past_len + row + 1;
        let first = window.map_or(0, |window| keys.saturating_sub(window));
        let mut scores: Vec<f32> = (first..keys)
            .map(|key| scale * q.iter().zip(&k[cached(head, key)..]).map(|(q, k)| q * k).sum::<f32>())
            .collect();
        if let Some(cap) = soft_cap {
            crate::soft_cap::soft_cap(&mut scores, cap);
        }
        let m = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f32 = scores.iter().map(|s| (s - m).exp()).sum();
        y.fill(0.0);
        for (i, score) in scores.iter().enumerate() {
            let p = (score - m).exp() / sum;
            for (y, v) in y.iter_mut().zip(&v[cached(head, first + i)..]) {
                *y += p * v;
            }
        }
    }
}

/// What the splits of each row and head come to. `parts`: [rows and heads, splits, head_dim + 2], the last two being the
/// largest score and the sum of exponentials. Result: [rows and heads, head_dim].
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
