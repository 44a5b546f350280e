//! Exponentials as vector code, for `candle.rs` and `candle_kv.rs`: weights of attention, and the gate of the feed-forward.
//!
//! The C library's is a call for each number, which took longer than attention's products.

/// Numbers that are looked at side by side.
const LANES: usize = 8;

/// `e^x`, to three units in the last place; 0 below the smallest normal number, and no more than `e^88`.
#[inline(always)]
fn exp(x: f32) -> f32 {
    /// The last place of 1.5 * 2^23 is one: adding it rounds to a whole number, which is then in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // x = n ln 2 + r with |r| at most half of ln 2, of which the first part has so few bits that its product is exact.
    let in_range = x.clamp(-87.0, 88.0);
    let rounded = in_range * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = in_range - n * 0.693_359_4 + n * 2.121_944_4e-4;
    // Taylor's series: what comes after is below 1e-8.
    let mut sum = 1.0 / 5040.0;
    for factor in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        sum = sum * r + factor;
    }
    // Times 2^n.
    let value = f32::from_bits(sum.to_bits().wrapping_add(rounded.to_bits() << 23));
    if x < -87.0 { 0.0 } else { value }
}

/// Makes weights of scores: `softmax`.
pub(super) fn softmax(scores: &mut [f32]) {
    let mut largest = [f32::NEG_INFINITY; LANES];
    for scores in scores.chunks(LANES) {
        largest.iter_mut().zip(scores).for_each(|(max, &score)| *max = if score > *max { score } else { *max });
    }
    let max = largest.into_iter().fold(f32::NEG_INFINITY, f32::max);
    let mut sums = [0.0; LANES];
    for scores in scores.chunks_mut(LANES) {
        for (sum, score) in sums.iter_mut().zip(scores) {
            *score = exp(*score - max);
            *sum += *score;
        }
    }
    let inverse = 1.0 / sums.iter().sum::<f32>();
    scores.iter_mut().for_each(|score| *score *= inverse);
}

/// `silu(gate) * up` of rows `[gate | up]` of `2 * inner` numbers.
pub(super) fn silu_gate(rows: &[f32], inner: usize, output: &mut [f32]) {
    for (row, output) in rows.chunks_exact(2 * inner).zip(output.chunks_exact_mut(inner)) {
        let (gate, up) = row.split_at(inner);
        for ((output, gate), up) in output.iter_mut().zip(gate).zip(up) {
            *output = gate / (1.0 + exp(-gate)) * up;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials_are_those_of_f64() {
        for i in -200_000..200_000 {
            let x = i as f32 * 4.4e-4;
            let (found, expected) = (f64::from(exp(x)), f64::from(x).exp());
            if x < -87.0 {
                assert!((found - expected).abs() < 2e-38, "{x}: {found}");
            } else if x <= 88.0 {
                assert!((found / expected - 1.0).abs() < 3e-7, "{x}: {found}, not {expected}");
            }
        }
        assert_eq!((exp(0.0), exp(f32::NEG_INFINITY)), (1.0, 0.0));
        assert!(exp(f32::NAN).is_nan() && exp(1e30) > 1e38);
    }

    #[test]
    fn weights_add_up_to_one() {
        for len in [1, 7, 8, 65] {
            let scores: Vec<f32> = (0..len).map(|i| ((i * 37) % 23) as f32 - 11.0).collect();
            let mut weights = scores.clone();
            softmax(&mut weights);
            let sum: f64 = scores.iter().map(|&score| f64::from(score).exp()).sum();
            for (weight, score) in weights.iter().zip(&scores) {
                let expected = f64::from(*score).exp() / sum;
                assert!((f64::from(*weight) - expected).abs() < 1e-6 * expected, "{weight}, not {expected}");
            }
        }
        // What is not to be seen weighs nothing, and a number that is none spoils all.
        let mut weights = [f32::NEG_INFINITY, 3.0, f32::NEG_INFINITY];
        softmax(&mut weights);
        assert_eq!(weights, [0.0, 1.0, 0.0]);
        let mut weights = [1.0, f32::NAN, 2.0];
        softmax(&mut weights);
        assert!(weights.iter().all(|weight| weight.is_nan()));
    }

    #[test]
    fn the_gate_closes_and_opens() {
        let mut output = [f32::NAN; 4];
        silu_gate(&[-200.0, 0.0, 200.0, 1.0, 5.0, 6.0, 7.0, 8.0], 4, &mut output);
        assert!(output[0].abs() < 1e-30, "closed");
        assert_eq!(output[1..3], [0.0, 1400.0]);
        assert!((output[3] - 8.0 / (1.0 + (-1f32).exp())).abs() < 1e-6);
    }
}
