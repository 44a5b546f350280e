//! The reference: plain loops.

/// The loss of one row: `ln sum exp(x) - x[target]`.
pub fn cross_entropy(x: &[f32], target: u32) -> f32 {
    let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = x.iter().map(|&v| f64::from(v - max).exp()).sum();
    (f64::from(max) + sum.ln() - f64::from(x[target as usize])) as f32
}
