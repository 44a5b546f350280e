//! `rope` in plain loops.

use crate::kv::padded;

/// Sizes that do not follow from the lengths of the buffers.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Rotated values of each head, from its first on.
    pub rotary_dim: usize,
    /// Position of the first row.
    pub past_len: usize,
    /// Tokens that the cache has room for.
    pub capacity: usize,
}

/// `qkv`: [rows, heads + 2 * kv_heads, head_dim]. `table`: [positions, rotary_dim / 2, 2].
/// `q`: [rows, heads, head_dim]. `k`, `v`: [kv_heads, capacity, head_dim padded to a multiple of 8].
pub fn rope(shape: Shape, qkv: &[f32], table: &[f32], q: &mut [f32], k: &mut [f32], v: &mut [f32]) {
    let Shape { heads, kv_heads, head_dim, rotary_dim, past_len, capacity } = shape;
    let (all_heads, half) = (heads + 2 * kv_heads, rotary_dim / 2);
    for (r, row) in qkv.chunks_exact(all_heads * head_dim).enumerate() {
        let position = past_len + r;
        for (head, values) in row.chunks_exact(head_dim).enumerate() {
            let cached = |kv_head: usize| (kv_head * capacity + position) * padded(head_dim);
            let out = if head < heads {
                &mut q[(r * heads + head) * head_dim..][..head_dim]
            } else if head < heads + kv_heads {
                &mut k[cached(head - heads)..][..head_dim]
            } else {
                v[cached(head - heads - kv_heads)..][..head_dim].copy_from_slice(values);
                continue;
            };
            for i in 0..half {
                let (cos, sin) = (table[position * rotary_dim + 2 * i], table[position * rotary_dim + 2 * i + 1]);
                out[i] = values[i] * cos - values[i + half] * sin;
                out[i + half] = values[i + half] * cos + values[i] * sin;
            }
            out[rotary_dim..].copy_from_slice(&values[rotary_dim..]);
        }
    }
}

/// Rounds a group to eight-bit codes with a scale. The largest magnitude gets code 127.
pub(super) fn round_to_eight_bits(group: &mut [f32]) {
    let scale = group.iter().fold(0.0, |largest: f32, value| largest.max(value.abs())) / 127.0;
    if scale > 0.0 {
        group.iter_mut().for_each(|value| *value = (*value / scale).round() * scale);
    }
}
