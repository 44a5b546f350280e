//! The quantizer's kernels in plain loops.

use half::f16;

use super::BLOCK;

/// `y[r, c] -= sum over k of a[r, k] * b[k, c]` for the columns from `first` on.
pub fn rank_update(a: &[f32], b: &[f32], depth: usize, first: usize, cols: usize, y: &mut [f32]) {
    for (a, y) in a.chunks(depth).zip(y.chunks_mut(cols)) {
        for c in first..cols {
            y[c] -= (0..depth).map(|k| a[k] * b[k * cols + c]).sum::<f32>();
        }
    }
}

fn round_to(value: f32, zero: f32, max_code: f32) -> f32 {
    (value.round_ties_even() + zero).clamp(0.0, max_code)
}

/// Errors and negated weights before rounding, each `[rows, BLOCK]`. `factor`, `correction`: rows from the first column on. The
/// sizes are all columns, the first column, and the columns of a group.
pub fn columns(
    weights: &[f32],
    factor: &[f32],
    correction: Option<&[f32]>,
    perm: &[u32],
    grid: &[f32],
    [cols, start, group_len]: [usize; 3],
    max_code: f32,
    codes: &mut [f32],
) -> (Vec<f32>, Vec<f32>) {
    let groups = cols / group_len;
    let (mut errors, mut unrounded) = (Vec::new(), Vec::new());
    for (row, weights) in weights.chunks(cols).enumerate() {
        let mut values = weights[start..start + BLOCK].to_vec();
        for k in 0..BLOCK {
            let column = perm[start + k] as usize;
            let at = 2 * (row * groups + column / group_len);
            let (scale, zero, weight) = (grid[at], grid[at + 1], values[k]);
            let code = round_to(weight / scale, zero, max_code);
            codes[row * cols + column] = code;
            let error = (weight - (code - zero) * scale) / factor[k * cols + start + k];
            errors.push(error);
            unrounded.push(-weight);
            for j in k + 1..BLOCK {
                values[j] -= error * factor[k * cols + start + j];
                if let Some(correction) = correction {
                    values[j] += weight * correction[k * cols + start + j];
                }
            }
        }
    }
    (errors, unrounded)
}

fn round_scale(scale: f32, coarse_bits: u32) -> f32 {
    if coarse_bits == 0 {
        return f16::from_f32(scale.clamp(f16::MIN.to_f32(), f16::MAX.to_f32())).to_f32();
    }
    let largest = 32_768.0 / (1u32 << coarse_bits) as f32;
    let bits = f16::from_f32(scale.clamp(-largest, largest)).to_bits();
    let size = ((bits & 0x7fff) + (1 << (coarse_bits - 1))) >> coarse_bits << coarse_bits;
    f16::from_bits(bits & 0x8000 | size).to_f32()
}

/// Changes of the weights `[rows, len]`. The sizes are all columns, the group, and its columns.
pub fn scales(
    residual: &[f32],
    codes: &[f32],
    lines: &[f32],
    [cols, group, len]: [usize; 3],
    coarse_bits: u32,
    grid: &mut [f32],
) -> Vec<f32> {
    let groups = cols / len;
    let mut changes = Vec::new();
    for (row, (residual, codes)) in residual.chunks(cols).zip(codes.chunks(cols)).enumerate() {
        let (scale, zero) = (grid[2 * (row * groups + group)], grid[2 * (row * groups + group) + 1]);
        let range = group * len..(group + 1) * len;
        let multiples: Vec<f32> = codes[range.clone()].iter().map(|code| code - zero).collect();
        let product = |i: usize| (0..len).map(|j| lines[i * cols + group * len + j] * multiples[j]).sum::<f32>();
        let curvature: f32 = (0..len).map(|i| product(i) * multiples[i]).sum();
        let slope: f32 = residual[range].iter().zip(&multiples).map(|(r, m)| r * m).sum();
        let mut change = 0.0;
        if curvature > 0.0 {
            let new = round_scale(scale + slope / curvature, coarse_bits);
            let step = new - scale;
            if new.abs() >= f16::MIN_POSITIVE.to_f32() && step * (step * curvature - 2.0 * slope) < 0.0 {
                change = step;
                grid[2 * (row * groups + group)] = new;
            }
        }
        changes.extend(multiples.iter().map(|m| change * m));
    }
    changes
}

/// Changes of the weights `[rows, BLOCK]`. The sizes are all columns, the group, its columns, and the offset in the group.
pub fn codes(
    residual: &[f32],
    lines: &[f32],
    grid: &[f32],
    [cols, group, len, offset]: [usize; 4],
    max_code: f32,
    codes: &mut [f32],
) -> Vec<f32> {
    let groups = cols / len;
    let mut changes = Vec::new();
    for (row, (residual, codes)) in residual.chunks(cols).zip(codes.chunks_mut(cols)).enumerate() {
        let (scale, zero) = (grid[2 * (row * groups + group)], grid[2 * (row * groups + group) + 1]);
        let first = group * len + offset;
        let mut left = residual[first..first + BLOCK].to_vec();
        for k in 0..BLOCK {
            let line = &lines[(offset + k) * cols + first..][..BLOCK];
            let old = codes[first + k];
            let code = round_to(((old - zero) * scale + left[k] / line[k]) / scale, zero, max_code);
            let change = (code - old) * scale;
            codes[first + k] = code;
            changes.push(change);
            (k + 1..BLOCK).for_each(|j| left[j] -= change * line[j]);
        }
    }
    changes
}

/// Weights minus their dequantized codes.
pub fn errors(weights: &[f32], codes: &[f32], grid: &[f32], cols: usize, group_len: usize) -> Vec<f32> {
    let groups = cols / group_len;
    let value = |i: usize| {
        let at = 2 * (i / cols * groups + i % cols / group_len);
        (codes[i] - grid[at + 1]) * grid[at]
    };
    (0..weights.len()).map(|i| weights[i] - value(i)).collect()
}

/// Dot products of rows.
pub fn row_dots(a: &[f32], b: &[f32], cols: usize) -> Vec<f32> {
    let dot = |(a, b): (&[f32], &[f32])| std::iter::zip(a, b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
    a.chunks(cols).zip(b.chunks(cols)).map(|pair| dot(pair) as f32).collect()
}

/// An entry, summed over splits of equal length.
pub fn sum_of_splits(x: &[f32], splits: usize, at: usize) -> f32 {
    x.chunks(x.len() / splits).map(|split| split[at]).sum()
}
