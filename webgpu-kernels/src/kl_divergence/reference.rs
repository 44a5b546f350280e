//! The reference: plain loops.

/// The divergence of one row: `sum over c of p[c] * (ln p[c] - ln q[c])`, with p and q the softmax of `x` and `y`.
pub fn kl_divergence(x: &[f32], y: &[f32]) -> f32 {
    let top = |logits: &[f32]| f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let (top_x, top_y) = (top(x), top(y));
    let (mut sum_x, mut sum_y, mut sum_both) = (0.0, 0.0, 0.0);
    for (&x, &y) in x.iter().zip(y) {
        let (below_x, below_y) = (f64::from(x) - top_x, f64::from(y) - top_y);
        sum_x += below_x.exp();
        sum_y += below_y.exp();
        sum_both += below_x.exp() * (below_x - below_y);
    }
    (sum_both / sum_x - sum_x.ln() + sum_y.ln()) as f32
}

#[cfg(test)]
mod tests {
    use super::kl_divergence;

    #[test]
    fn two_outcomes_equal_a_hand_computed_value() {
        // Probabilities 1/2, 1/2 against 1/4, 3/4.
        let expected = 0.5 * (2f64.ln() + (2.0 / 3.0f64).ln());
        assert!((f64::from(kl_divergence(&[5.0, 5.0], &[0.0, 3f32.ln()])) - expected).abs() < 1e-7);
        assert_eq!(kl_divergence(&[1.0, -2.0, 7.0], &[11.0, 8.0, 17.0]), 0.0);
    }
}
