//! The reference: plain loops.

/// `x`: [any, cols]. `rows`: `[count]`. `y`: [count, cols].
pub fn select_rows(x: &[f32], rows: &[u32], cols: usize, y: &mut [f32]) {
    for (y, &row) in y.chunks_exact_mut(cols).zip(rows) {
        y.copy_from_slice(&x[row as usize * cols..][..cols]);
    }
}
