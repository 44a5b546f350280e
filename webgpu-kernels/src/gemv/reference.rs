//! The same in plain loops.

/// `w`: [rows, cols], dequantized. `x`: [batch, cols]. `y`: [batch, rows].
pub fn gemv(w: &[f32], x: &[f32], cols: usize, y: &mut [f32]) {
    let rows = w.len() / cols;
    for (x, y) in x.chunks_exact(cols).zip(y.chunks_exact_mut(rows)) {
        for (w, y) in w.chunks_exact(cols).zip(y) {
            *y = w.iter().zip(x).map(|(w, x)| w * x).sum();
        }
    }
}
