//! The reference: plain loops.

/// `x[i] = cap * tanh(x[i] / cap)`.
pub fn soft_cap(x: &mut [f32], cap: f32) {
    for x in x {
        *x = cap * (*x / cap).tanh();
    }
}
