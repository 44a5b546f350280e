//! The reference: plain loops.

use crate::rms_norm::rms_norm;

/// `qkv`: [rows, heads + 2 * kv_heads, head_dim]. `query`, `key`: `[head_dim]`.
pub fn norm_heads(qkv: &mut [f32], heads: usize, kv_heads: usize, query: &[f32], key: &[f32], eps: f32) {
    for row in qkv.chunks_exact_mut((heads + 2 * kv_heads) * query.len()) {
        for (head, values) in row.chunks_exact_mut(query.len()).take(heads + kv_heads).enumerate() {
            let x = values.to_vec();
            rms_norm(&x, if head < heads { query } else { key }, eps, values);
        }
    }
}
