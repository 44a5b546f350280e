//! `gram` and `token_weight` in plain loops.

use super::TokenWeights;

/// `x`: [tokens, cols]. `left`: `float` and `base`, each [tokens, columns], and their columns. `weight`: `[tokens]`. `sums`:
/// `[rows, cols]` from `first_row`. Without `left`, squares of `edge` outputs entirely above the diagonal are skipped.
pub fn add_products(
    x: &[f32],
    left: Option<([&[f32]; 2], usize)>,
    weight: &[f32],
    cols: usize,
    first_row: usize,
    edge: usize,
    sums: &mut [f32],
) {
    for (i, row) in sums.chunks_mut(cols).enumerate() {
        for (j, sum) in row.iter_mut().enumerate() {
            if left.is_none() && j / edge * edge >= first_row + i / edge * edge + edge {
                continue;
            }
            let mut total = f64::from(*sum);
            for (t, &weight) in weight.iter().enumerate() {
                let column = first_row + i;
                let a = match left {
                    Some(([float, base], left_cols)) => float[t * left_cols + column] - base[t * left_cols + column],
                    None => x[t * cols + column],
                };
                total += f64::from(weight) * f64::from(a) * f64::from(x[t * cols + j]);
            }
            *sum = total as f32;
        }
    }
}

/// The weight of each token. `x`: [tokens, cols].
pub fn token_weights(x: &[f32], cols: usize, kind: TokenWeights) -> Vec<f32> {
    let weight = |(t, x): (usize, &[f32])| {
        let mean_square = x.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>() / cols as f64;
        let norm = if kind.equal_norm && mean_square > 0.0 { 1.0 / mean_square } else { 1.0 };
        (norm * if t % kind.window == 0 { f64::from(kind.first) } else { 1.0 }) as f32
    };
    x.chunks(cols).enumerate().map(weight).collect()
}
