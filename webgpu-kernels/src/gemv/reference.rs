//! `gemv`, `gemv_add` and `gemv_scaled` in plain loops.

/// `w`: [rows, cols], dequantized. `x`: [batch, cols]. `y`: [batch, rows].
pub fn gemv(w: &[f32], x: &[f32], cols: usize, y: &mut [f32]) {
    let rows = w.len() / cols;
    for (x, y) in x.chunks_exact(cols).zip(y.chunks_exact_mut(rows)) {
        for (w, y) in w.chunks_exact(cols).zip(y) {
            *y = w.iter().zip(x).map(|(w, x)| w * x).sum();
        }
    }
}

/// `w`: [rows, cols]. `x`: `[cols]`. `norm`, `sum`, `y`: `[rows]`.
pub fn gemv_add(w: &[f32], x: &[f32], norm: &[f32], sum: &mut [f32], y: &mut [f32]) {
    let mut delta = vec![0.0; sum.len()];
    gemv(w, x, x.len(), &mut delta);
    for n in 0..sum.len() {
        sum[n] += delta[n];
        y[n] = sum[n] * norm[n];
    }
}

/// `w`: [rows, cols]. `x`: `[cols]`. `squares`: partial sums. `y`: `[rows]`.
pub fn gemv_scaled(w: &[f32], x: &[f32], squares: &[f32], eps: f32, y: &mut [f32]) {
    let factor = 1.0 / (squares.iter().sum::<f32>() / x.len() as f32 + eps).sqrt();
    let x: Vec<f32> = x.iter().map(|v| v * factor).collect();
    gemv(w, &x, x.len(), y);
}
