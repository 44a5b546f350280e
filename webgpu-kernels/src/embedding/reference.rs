//! The reference: plain loops.

/// `table`: [rows, cols], dequantized. `tokens`: `[count]`. `y`: [count, cols].
pub fn embedding(table: &[f32], cols: usize, scale: f32, tokens: &[u32], y: &mut [f32]) {
    for (y, &token) in y.chunks_exact_mut(cols).zip(tokens) {
        for c in 0..cols {
            y[c] = scale * table[token as usize * cols + c];
        }
    }
}
