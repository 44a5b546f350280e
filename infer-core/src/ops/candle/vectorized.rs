//! Vectorized loops of the CPU backend: RMS norm, softmax, attention of one row, and the gate of the feed-forward.
//!
//! Two reasons to have them here. The C library's `exp` is a call per number, which took longer than the products of attention.
//! And portable x86-64 code uses vectors of 128 bits, while most processors have 256.

use crate::ops::AttentionShape;

/// Number of values processed side by side.
const LANES: usize = 16;

/// Number of columns summed together, in registers.
const COLUMNS: usize = 32;

/// Defines a function that is compiled twice: portable, and for AVX2. Both have the same operations in the same order, so results
/// are bitwise equal.
macro_rules! vectorized {
    ($(#[$doc:meta])* fn $name:ident, $portable:ident($($arg:ident: $type:ty),* $(,)?) $body:block) => {
        #[inline(always)]
        fn $portable($($arg: $type),*) $body

        $(#[$doc])*
        pub(super) fn $name($($arg: $type),*) {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2")]
                fn avx2($($arg: $type),*) {
                    $portable($($arg),*);
                }
                if std::arch::is_x86_feature_detected!("avx2") {
                    // SAFETY: the processor has AVX2.
                    return unsafe { avx2($($arg),*) };
                }
            }
            $portable($($arg),*);
        }
    };
}

/// `e^x` with an error of at most 3 units in the last place. 0 if the result would be subnormal; at most `e^88`.
#[inline(always)]
fn exp(x: f32) -> f32 {
    /// 1.5 * 2^23. Adding it rounds to an integer, which is then in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // x = n ln 2 + r with |r| <= ln 2 / 2. The first part of ln 2 has so few bits that its product with n is exact.
    let in_range = x.clamp(-87.0, 88.0);
    let rounded = in_range * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = in_range - n * 0.693_359_4 + n * 2.121_944_4e-4;
    // Taylor series. The remainder is below 1e-8.
    let mut sum = 1.0 / 5040.0;
    for factor in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        sum = sum * r + factor;
    }
    // Times 2^n.
    let value = f32::from_bits(sum.to_bits().wrapping_add(rounded.to_bits() << 23));
    if x < -87.0 { 0.0 } else { value }
}

vectorized! {
    /// Softmax of the scores, in place.
    fn softmax, portable_softmax(scores: &mut [f32]) {
        softmax_in_place(scores);
    }
}

vectorized! {
    /// `silu(gate) * up` for rows `[gate | up]` of `2 * inner` numbers.
    fn silu_gate, portable_silu_gate(rows: &[f32], inner: usize, output: &mut [f32]) {
        for (row, output) in rows.chunks_exact(2 * inner).zip(output.chunks_exact_mut(inner)) {
            let (gate, up) = row.split_at(inner);
            for ((output, gate), up) in output.iter_mut().zip(gate).zip(up) {
                *output = gate / (1.0 + exp(-gate)) * up;
            }
        }
    }
}

vectorized! {
    /// RMS norm of each row, with weights `weight`.
    fn rms_norm, portable_rms_norm(rows: &[f32], weight: &[f32], eps: f32, output: &mut [f32]) {
        let width = weight.len();
        for (row, output) in rows.chunks_exact(width).zip(output.chunks_exact_mut(width)) {
            let inverse = 1.0 / (dot(row, row) / width as f32 + eps).sqrt();
            for ((output, value), weight) in output.iter_mut().zip(row).zip(weight) {
                *output = value * inverse * weight;
            }
        }
    }
}

vectorized! {
    /// `softmax(soft_cap(scale * K q)) V`. `weights` is scratch memory, one number per key.
    fn attend, portable_attend(
        query: &[f32],
        keys: &[f32],
        values: &[f32],
        shape: AttentionShape,
        weights: &mut [f32],
        output: &mut [f32],
    ) {
        let AttentionShape { head_dim, scale, soft_cap, .. } = shape;
        for (weight, key) in weights.iter_mut().zip(keys.chunks_exact(head_dim)) {
            *weight = scale * dot(query, key);
        }
        if let Some(cap) = soft_cap {
            weights.iter_mut().for_each(|score| *score = cap * (*score / cap).tanh());
        }
        softmax_in_place(weights);
        // The sums of this many columns stay in registers over all keys.
        let (whole, rest) = output.as_chunks_mut::<COLUMNS>();
        for (i, output) in whole.iter_mut().enumerate() {
            let mut sums = [0.0; COLUMNS];
            for (weight, value) in weights.iter().zip(values.chunks_exact(head_dim)) {
                let value = &value[i * COLUMNS..][..COLUMNS];
                sums.iter_mut().zip(value).for_each(|(sum, v)| *sum += weight * v);
            }
            *output = sums;
        }
        if !rest.is_empty() {
            let first = head_dim - rest.len();
            rest.fill(0.0);
            for (weight, value) in weights.iter().zip(values.chunks_exact(head_dim)) {
                rest.iter_mut().zip(&value[first..]).for_each(|(o, v)| *o += weight * v);
            }
        }
    }
}

#[inline(always)]
fn softmax_in_place(scores: &mut [f32]) {
    let mut largest = [f32::NEG_INFINITY; LANES];
    for scores in scores.chunks(LANES) {
        largest.iter_mut().zip(scores).for_each(|(max, &score)| *max = if score > *max { score } else { *max });
    }
    let max = largest.into_iter().fold(f32::NEG_INFINITY, f32::max);
    let mut sums = [0.0; LANES];
    let (whole, rest) = scores.as_chunks_mut::<LANES>();
    for scores in whole {
        for (sum, score) in sums.iter_mut().zip(scores) {
            *score = exp(*score - max);
            *sum += *score;
        }
    }
    let mut rest_sum = 0.0;
    for score in rest {
        *score = exp(*score - max);
        rest_sum += *score;
    }
    let inverse = 1.0 / (total(sums) + rest_sum);
    scores.iter_mut().for_each(|score| *score *= inverse);
}

#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0; LANES];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    total(sums) + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f32>()
}

/// The sum of all lanes, by halving.
#[inline(always)]
fn total(mut sums: [f32; LANES]) -> f32 {
    for width in [8, 4, 2, 1] {
        let (low, high) = sums.split_at_mut(width);
        low.iter_mut().zip(high).for_each(|(low, high)| *low += *high);
    }
    sums[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_equals_f64() {
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

    /// The functions are bitwise equal to their portable versions, and norm and attention are close to f64.
    #[test]
    fn results_do_not_depend_on_the_processor() {
        let numbers = |len: usize, seed: usize| -> Vec<f32> {
            (0..len).map(|i| ((i * 7919 + seed * 104_729) % 1013) as f32 / 300.0 - 1.7).collect()
        };
        for width in [1, 15, 64, 100] {
            let (rows, weight) = (numbers(3 * width, 1), numbers(width, 2));
            let (mut found, mut portable) = (vec![0.0; 3 * width], vec![0.0; 3 * width]);
            rms_norm(&rows, &weight, 1e-5, &mut found);
            portable_rms_norm(&rows, &weight, 1e-5, &mut portable);
            assert_eq!(found, portable);
            for (row, found) in rows.chunks(width).zip(found.chunks(width)) {
                let square: f64 = row.iter().map(|&v| f64::from(v).powi(2)).sum();
                let scale = 1.0 / (square / width as f64 + 1e-5).sqrt();
                for ((found, value), weight) in found.iter().zip(row).zip(&weight) {
                    let expected = f64::from(*value) * scale * f64::from(*weight);
                    assert!((f64::from(*found) - expected).abs() < 1e-6 * expected.abs().max(1.0));
                }
            }
            let mut gates = [vec![0.0; width], vec![0.0; width]];
            silu_gate(&numbers(2 * width, 3), width, &mut gates[0]);
            portable_silu_gate(&numbers(2 * width, 3), width, &mut gates[1]);
            assert_eq!(gates[0], gates[1]);
            let mut weights = [numbers(width, 4), numbers(width, 4)];
            softmax(&mut weights[0]);
            portable_softmax(&mut weights[1]);
            assert_eq!(weights[0], weights[1]);

            let (positions, soft_cap) = (37, (width == 15).then_some(0.8));
            let shape = AttentionShape {
                heads: 1,
                kv_heads: 1,
                head_dim: width,
                rotary_dim: width,
                scale: 0.1,
                soft_cap,
                window: None,
            };
            let (query, keys, values) =
                (numbers(width, 5), numbers(positions * width, 6), numbers(positions * width, 7));
            let mut outputs = [vec![f32::NAN; width], vec![f32::NAN; width]];
            attend(&query, &keys, &values, shape, &mut vec![0.0; positions], &mut outputs[0]);
            portable_attend(&query, &keys, &values, shape, &mut vec![0.0; positions], &mut outputs[1]);
            assert_eq!(outputs[0], outputs[1]);
            let scores: Vec<f64> = keys
                .chunks(width)
                .map(|key| key.iter().zip(&query).map(|(k, q)| f64::from(*k) * f64::from(*q)).sum::<f64>() * 0.1)
                .map(|score| soft_cap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh()).exp())
                .collect();
            for (column, found) in outputs[0].iter().enumerate() {
                let of_column = values.iter().skip(column).step_by(width);
                let sum: f64 = of_column.zip(&scores).map(|(v, s)| f64::from(*v) * s).sum();
                let expected = sum / scores.iter().sum::<f64>();
                assert!((f64::from(*found) - expected).abs() < 1e-5, "{width}, {column}: {found}, not {expected}");
            }
        }
    }

    #[test]
    fn softmax_equals_f64() {
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
        // A masked score gets weight 0. A NaN makes every weight NaN.
        let mut weights = [f32::NEG_INFINITY, 3.0, f32::NEG_INFINITY];
        softmax(&mut weights);
        assert_eq!(weights, [0.0, 1.0, 0.0]);
        let mut weights = [1.0, f32::NAN, 2.0];
        softmax(&mut weights);
        assert!(weights.iter().all(|weight| weight.is_nan()));
    }

    #[test]
    fn the_silu_gate_saturates() {
        let mut output = [f32::NAN; 4];
        silu_gate(&[-200.0, 0.0, 200.0, 1.0, 5.0, 6.0, 7.0, 8.0], 4, &mut output);
        assert!(output[0].abs() < 1e-30, "gate closed");
        assert_eq!(output[1..3], [0.0, 1400.0]);
        assert!((output[3] - 8.0 / (1.0 + (-1f32).exp())).abs() < 1e-6);
    }
}
