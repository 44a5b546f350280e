//! The same in plain loops.

/// `table`: [rows, cols], dequantized. `tokens`: `[count]`. `y`: [count, cols].
pub fn embedding(table: &[f32], cols: usize, tokens: &[u32], y: &mut [f32]) {
    for (y, &token) in y.chunks_exact_mut(cols).zip(tokens) {
        y.copy_from_slice(&table[token as usize * cols..][..cols]);
    }
}
