//! The reference: plain loops.

/// `x[r, c] += y[c]`. `x`: [any, cols]. `y`: `[cols]`.
pub fn add(x: &mut [f32], y: &[f32]) {
    for x in x.chunks_exact_mut(y.len()) {
        for (x, y) in x.iter_mut().zip(y) {
            *x += y;
        }
    }
}
