//! [`Grid`]: the values that a quantized weight may take, and the search for a group's scale and zero.
//!
//! `value = (code - zero) * scale` with `code` in `0 .. 2^bits`, as in GPTQ checkpoints.

use half::f16;
use model_format::QuantFormat;
use serde::Serialize;

use super::dialect::Dialect;

/// The values that a quantized weight may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Grid {
    /// Bits per code, 2 to 8.
    pub bits: u32,
    /// Inputs per scale; `None` for the whole row. The last group of a row may be shorter.
    pub group_size: Option<usize>,
    /// True if the zero is the middle code of every group.
    pub sym: bool,
}

/// How to choose the scale of a group, and its zero on an asymmetric grid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub enum ScaleSearch {
    /// By the range of the weights.
    Range,
    /// By this range or one of 79 shrunken ones: the range with the smallest sum of `|error|^2.4`. `mse` of GPTQ's tools.
    Mse,
    /// The smallest sum of `error^2 * H_kk`, with the Hessian's diagonal. Symmetric scales may be negative, so that the side with
    /// one more code can hold the largest weight.
    #[default]
    Hessian,
}

/// The rounding of a scale when it is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScaleRounding {
    /// None. Scales are rounded after the codes are chosen.
    Later,
    /// To f16.
    F16,
    /// To an f16 number with few enough significant bits that every value is exact in f16 too.
    CoarseF16,
}

/// Scale and zero of one group.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GroupParams {
    /// The difference between two neighboring values. May be negative on a symmetric grid.
    pub scale: f64,
    /// The code of zero.
    pub zero: f64,
}

impl Grid {
    /// The grid whose checkpoints convert into `format` without loss. `None` for a format without codes.
    ///
    /// A group format stores `n` for `(n - max_int) * s`. Code `2^bits - 1 - n` and scale `-s` on a symmetric GPTQ grid give the
    /// same value.
    pub fn of_format(format: &QuantFormat) -> Option<Grid> {
        let group = format.group()?;
        Some(Grid { bits: group.bits as u32, group_size: Some(group.group_size), sym: true })
    }

    /// The largest code.
    pub fn max_code(&self) -> u8 {
        ((1u32 << self.bits) - 1) as u8
    }

    /// The code of zero on a symmetric grid.
    pub fn middle(&self) -> u8 {
        1 << (self.bits - 1)
    }

    /// Inputs per group in a row of `cols`.
    pub fn group_len(&self, cols: usize) -> usize {
        self.group_size.unwrap_or(cols)
    }

    /// Groups in a row of `cols`.
    pub fn groups(&self, cols: usize) -> usize {
        cols.div_ceil(self.group_len(cols))
    }

    /// The nearest code; ties round to even.
    #[inline]
    pub fn code(&self, weight: f64, params: GroupParams) -> u8 {
        (round_ties_even(weight / params.scale) + params.zero).clamp(0.0, f64::from(self.max_code())) as u8
    }

    /// The value of a code.
    #[inline]
    pub fn value(&self, code: u8, params: GroupParams) -> f64 {
        (f64::from(code) - params.zero) * params.scale
    }

    /// The scale and zero with the smallest sum of `importance * error^2` over `weights`, among 8 shrinkages of each candidate.
    ///
    /// Symmetric candidates map the largest weight to the outermost code of the longer side (the scale's sign chooses which side
    /// that is) or of the shorter side, with either sign. Without `signed`, only the shorter side with a positive scale.
    /// Asymmetric candidates map the range of the weights to all codes.
    pub fn search_params(
        &self,
        weights: &[f32],
        importance: &[f32],
        signed: bool,
        rounding: ScaleRounding,
    ) -> GroupParams {
        let (max_code, middle) = (f32::from(self.max_code()), f32::from(self.middle()));
        let mut best = (f32::INFINITY, GroupParams { scale: 1.0, zero: f64::from(middle) });
        let mut consider = |scale: f32, zero: Option<f32>| {
            let scale = self.rounded(f64::from(scale), rounding) as f32;
            let zero = zero.map_or(middle, |lowest| round_ties_even_f32(-lowest / scale).clamp(1.0, max_code));
            let error = squared_error(weights, importance, scale, -zero, max_code - zero);
            if error < best.0 {
                best = (error, GroupParams { scale: f64::from(scale), zero: f64::from(zero) });
            }
        };
        let lowest = weights.iter().fold(0f32, |m, &w| m.min(w));
        let highest = weights.iter().fold(0f32, |m, &w| m.max(w));
        let largest = if -lowest > highest { lowest } else { highest };
        for step in 0..8 {
            let shrink = 1.0 - 0.05 * step as f32;
            if self.sym && !signed {
                consider(largest.abs() * shrink / (middle - 1.0), None);
            } else if self.sym {
                consider(-largest * shrink / middle, None);
                consider(largest * shrink / (middle - 1.0), None);
                consider(-largest * shrink / (middle - 1.0), None);
            } else {
                // No zero of 0: version 1 of the format stores zero - 1, and its readers disagree about -1.
                consider((highest - lowest) * shrink / max_code, Some(lowest * shrink));
            }
        }
        best.1
    }

    /// The nearest f16 scale. With `values_in_f16`, the nearest one whose values are exact in f16 too.
    pub fn round_scale(&self, scale: f64, values_in_f16: bool) -> f64 {
        let scale = scale as f32;
        let bits = self.bits - u32::from(self.sym);
        f64::from(if values_in_f16 { to_coarse_f16(scale, bits) } else { to_f16(scale) })
    }

    /// Scale and zero by the range of `weights`, in full precision. With `mse`, by [`ScaleSearch::Mse`].
    pub fn range_params(&self, weights: &[f64], mse: bool) -> GroupParams {
        self.range_params_in(Dialect::Own, weights, mse)
    }

    /// [`Grid::range_params`] of a dialect. In gptq.py, a symmetric group without negative weights has 0 as its lowest value and
    /// uses half of the codes.
    pub(crate) fn range_params_in(&self, dialect: Dialect, weights: &[f64], mse: bool) -> GroupParams {
        const STEPS: u32 = 80; // `maxshrink` of `grid`
        const NORM: f64 = 2.4;
        let mut lowest = weights.iter().fold(0f64, |m, &w| m.min(w));
        let mut highest = weights.iter().fold(0f64, |m, &w| m.max(w));
        if self.sym {
            highest = highest.max(-lowest);
            if lowest < 0.0 || dialect == Dialect::Own {
                lowest = -highest;
            }
        }
        if lowest == 0.0 && highest == 0.0 {
            (lowest, highest) = (-1.0, 1.0);
        }
        let shrunken = |step: u32| {
            let share = 1.0 - f64::from(step) / 100.0;
            let (lowest, highest) = (share * lowest, share * highest);
            let scale = (highest - lowest) / f64::from(self.max_code());
            let zero = if self.sym { f64::from(self.middle()) } else { round_ties_even(-lowest / scale) };
            GroupParams { scale, zero }
        };
        if !mse {
            return shrunken(0);
        }
        let error = |params: GroupParams| -> f64 {
            weights.iter().map(|&w| (self.value(self.code(w, params), params) - w).abs().powf(NORM)).sum()
        };
        let mut best = (f64::INFINITY, shrunken(0));
        for params in (0..STEPS).map(shrunken) {
            let error = error(params);
            if error < best.0 {
                best = (error, params);
            }
        }
        best.1
    }

    fn rounded(&self, scale: f64, rounding: ScaleRounding) -> f64 {
        match rounding {
            // 0 becomes 1: the search divides by the scale.
            ScaleRounding::Later => scale + f64::from(u8::from(scale == 0.0)),
            ScaleRounding::F16 => self.round_scale(scale, false),
            ScaleRounding::CoarseF16 => self.round_scale(scale, true),
        }
    }

    /// The nearest params that every checkpoint can store: the scale rounded, and a zero of at least 1 for version 1.
    pub fn storable(&self, params: GroupParams, rounding: ScaleRounding) -> GroupParams {
        GroupParams { scale: self.rounded(params.scale, rounding), zero: params.zero.max(1.0) }
    }
}

/// The nearest f16 that is neither zero nor infinite.
fn to_f16(scale: f32) -> f32 {
    let rounded = f16::from_f32(scale);
    if rounded.to_bits() & 0x7fff == 0 {
        return f16::from_bits(1).to_f32();
    }
    rounded.to_f32().clamp(f16::MIN.to_f32(), f16::MAX.to_f32())
}

/// The nearest f16 whose products with integers of `bits` bits are exact in f16.
fn to_coarse_f16(scale: f32, bits: u32) -> f32 {
    let largest = 32_768.0 / (1u32 << bits) as f32;
    let rounded = f16::from_f32(scale.clamp(-largest, largest)).to_bits();
    let (sign, size) = (rounded & 0x8000, rounded & 0x7fff);
    // A carry out of the mantissa correctly increments the exponent.
    let size = (size + (1 << (bits - 1))) >> bits << bits;
    f16::from_bits(sign | size.max(1 << bits)).to_f32()
}

/// Sum of `importance * (weight - nearest value)^2`. The values are `scale` times the integers `lowest ..= highest`.
fn squared_error(weights: &[f32], importance: &[f32], scale: f32, lowest: f32, highest: f32) -> f32 {
    let inverse = 1.0 / scale;
    // Eight partial sums, so that the compiler can vectorize.
    let mut sums = [0f32; 8];
    let mut add = |lane: usize, weight: f32, importance: f32| {
        let multiple = round_ties_even_f32((weight * inverse).max(lowest).min(highest));
        let error = weight - multiple * scale;
        sums[lane] += importance * error * error;
    };
    let (mut w, mut h) = (weights.chunks_exact(8), importance.chunks_exact(8));
    for (w, h) in w.by_ref().zip(h.by_ref()) {
        for lane in 0..8 {
            add(lane, w[lane], h[lane]);
        }
    }
    for (lane, (&w, &h)) in w.remainder().iter().zip(h.remainder()).enumerate() {
        add(lane, w, h);
    }
    sums.iter().sum()
}

/// `f64::round_ties_even` by two additions, which vectorize on every x86-64. Exact up to 1e9.
#[inline]
fn round_ties_even(x: f64) -> f64 {
    const MAGIC: f64 = 1.5 * (1u64 << 52) as f64;
    // Every caller clamps to a smaller range.
    (x.clamp(-1e9, 1e9) + MAGIC) - MAGIC
}

/// [`round_ties_even`] in f32. Exact up to 1e6.
#[inline]
fn round_ties_even_f32(x: f32) -> f32 {
    const MAGIC: f32 = 1.5 * (1u32 << 23) as f32;
    (x.clamp(-1e6, 1e6) + MAGIC) - MAGIC
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYM4: Grid = Grid { bits: 4, group_size: Some(32), sym: true };
    const ASYM4: Grid = Grid { bits: 4, group_size: Some(32), sym: false };

    #[test]
    fn rounds_ties_to_even() {
        for x in [0.5, 1.5, 2.5, -0.5, -1.5, 0.49999999999999994, 7.5, -3.2, 1e300, -1e300] {
            assert_eq!(round_ties_even(x), x.round_ties_even().clamp(-1e9, 1e9), "{x}");
            let x = x as f32;
            assert_eq!(round_ties_even_f32(x), x.round_ties_even().clamp(-1e6, 1e6), "{x}");
        }
    }

    fn check_exact(grid: Grid, multiples: [i32; 8], scale: f32) {
        let weights: Vec<f32> = multiples.iter().map(|&m| m as f32 * scale).collect();
        let params = grid.search_params(&weights, &[1.0; 8], true, ScaleRounding::F16);
        for &w in &weights {
            assert_eq!(grid.value(grid.code(f64::from(w), params), params), f64::from(w), "{multiples:?} {params:?}");
        }
    }

    #[test]
    fn uses_all_sixteen_codes() {
        check_exact(SYM4, [-8, -3, 0, 1, 2, 5, 6, 7], 0.25);
        // 8 on the positive side needs a negative scale.
        check_exact(SYM4, [8, 3, 0, -1, -2, -5, -6, -7], 0.25);
        check_exact(SYM4, [7, 3, 0, -1, -2, -5, -6, -7], 0.25);
        check_exact(ASYM4, [14, 3, 0, -1, 2, 5, 6, 7], 0.25);
    }

    #[test]
    fn extreme_groups_get_finite_nonzero_scales() {
        for grid in [SYM4, ASYM4] {
            for weights in [[0.0f32; 8], [1e-9; 8], [3e38; 8], [5.0; 8], [-5.0; 8]] {
                let params = grid.search_params(&weights, &[1.0; 8], true, ScaleRounding::F16);
                assert!(params.scale != 0.0 && params.scale.is_finite(), "{weights:?} {params:?}");
                assert!((1.0..=15.0).contains(&params.zero), "{weights:?} {params:?}");
            }
            let params = grid.search_params(&[0.0; 8], &[1.0; 8], true, ScaleRounding::F16);
            assert_eq!(grid.value(grid.code(0.0, params), params), 0.0);
        }
    }

    #[test]
    fn important_weights_get_the_smaller_error() {
        let weights = [1.0f32, 0.137, 0.137, 0.137];
        let of = |importance: &[f32; 4]| {
            let params = SYM4.search_params(&weights, importance, true, ScaleRounding::F16);
            (SYM4.value(SYM4.code(0.137, params), params) - 0.137).abs()
        };
        assert!(of(&[0.0, 1.0, 1.0, 1.0]) < of(&[1.0, 0.0, 0.0, 0.0]));
    }

    #[test]
    fn coarse_scales_make_values_exact_in_f16() {
        for bits in [2, 3, 4, 8] {
            for step in 0..4000u32 {
                let scale = (step as f32 / 100.0 - 20.0).exp2() * if step % 2 == 0 { 1.0 } else { -1.0 };
                let coarse = to_coarse_f16(scale, bits);
                let is_normal = scale.abs() > 6.2e-5 && scale.abs() < 100.0;
                assert!(
                    !is_normal || (coarse / scale - 1.0).abs() < 1.3 * 2f32.powi(bits as i32 - 11),
                    "{scale} {coarse}"
                );
                for multiple in 0..=1 << bits {
                    let value = multiple as f32 * coarse;
                    assert_eq!(f16::from_f32(value).to_f32(), value, "{multiple} * {coarse}");
                }
            }
        }
    }
}
