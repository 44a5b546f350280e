//! `rope` in plain loops.

use crate::{RowSpan, kv::padded};

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
}

/// `qkv`: [rows, heads + 2 * kv_heads, head_dim]. `table`: [positions, rotary_dim / 2, 2].
/// `q`: [rows, heads, head_dim]. `kv`: [pages, 2, kv_heads, PAGE, head_dim padded to a multiple of 8].
pub fn rope(shape: Shape, spans: &[RowSpan<'_>], qkv: &[f32], table: &[f32], q: &mut [f32], kv: &mut [f32]) {
    let Shape { heads, kv_heads, head_dim, rotary_dim } = shape;
    let (all_heads, half) = (heads + 2 * kv_heads, rotary_dim / 2);
    let positions =
        spans.iter().flat_map(|span| (span.past_len..span.past_len + span.rows).map(move |position| (span, position)));
    for (r, (row, (span, position))) in qkv.chunks_exact(all_heads * head_dim).zip(positions).enumerate() {
        for (head, values) in row.chunks_exact(head_dim).enumerate() {
            let stored = |is_value: bool, kv_head: usize| {
                span.pool_row(kv_heads, is_value, kv_head, position) * padded(head_dim)
            };
            let out = if head < heads {
                &mut q[(r * heads + head) * head_dim..][..head_dim]
            } else if head < heads + kv_heads {
                &mut kv[stored(false, head - heads)..][..head_dim]
            } else {
                kv[stored(true, head - heads - kv_heads)..][..head_dim].copy_from_slice(values);
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
