//! `rms_norm` and `add_rms_norm` in plain loops.

/// `x`, `y`: [rows, cols]. `weight`: `[cols]`.
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
    let cols = weight.len();
    for (x, y) in x.chunks_exact(cols).zip(y.chunks_exact_mut(cols)) {
        let mean_square = x.iter().map(|v| v * v).sum::<f32>() / cols as f32;
        let factor = 1.0 / (mean_square + eps).sqrt();
        for c in 0..cols {
            y[c] = x[c] * factor * weight[c];
        }
    }
}

/// `x += addend`, then `rms_norm`.
pub fn add_rms_norm(x: &mut [f32], addend: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
    crate::add::add(x, addend);
    rms_norm(x, weight, eps, y);
}
