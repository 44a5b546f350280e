//! The reference: plain loops.

/// `x`: [rows, cols]. `y`: `[rows]`.
pub fn argmax(x: &[f32], cols: usize, y: &mut [u32]) {
    for (x, y) in x.chunks_exact(cols).zip(y) {
        let (mut best, mut best_value) = (0, f32::NEG_INFINITY);
        for (c, &value) in x.iter().enumerate() {
            if value > best_value {
                (best, best_value) = (c, value);
            }
        }
        *y = best as u32;
    }
}
