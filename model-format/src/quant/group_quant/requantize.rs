//! Recovers the codes and scales of floating-point weights that already lie on a group grid, for example of an
//! embedding table that a quantizer wrote in floating point.

use super::{GroupQuant, scales::narrow};

impl GroupQuant {
    /// As [`GroupQuant::quantize_into`], but a group whose values the format can represent exactly keeps them. Returns
    /// the number of rounded groups.
    pub fn requantize_into(self, cols: usize, weights: &[f32], words: &mut [u32], scales: &mut [u16]) -> usize {
        self.quantize_into(cols, weights, words, scales);
        let (row_words, groups) = (self.row_words(cols), self.groups(cols));
        let mut codes = vec![0u8; self.group_size];
        let mut rounded = 0;
        let rows = words.chunks_exact_mut(row_words).zip(scales.chunks_exact_mut(groups));
        for (weights, (words, scales)) in weights.chunks_exact(cols).zip(rows) {
            let groups = words.chunks_exact_mut(self.words_per_group()).zip(scales);
            for (weights, (words, bits)) in weights.chunks(self.group_size).zip(groups) {
                codes[weights.len()..].fill(0);
                match self.exact(weights, &mut codes) {
                    Some(scale) => {
                        *bits = narrow(self.scale_dtype(), scale).1;
                        words.copy_from_slice(&self.pack(1, self.group_size, &codes));
                    }
                    None => rounded += usize::from(weights.iter().any(|&w| w != 0.0)),
                }
            }
        }
        rounded
    }

    /// Finds a scale and `codes` with exactly these values. `None` if no scale is exact, or all values are zero.
    fn exact(self, values: &[f32], codes: &mut [u8]) -> Option<f32> {
        let largest = values.iter().fold(0f32, |max, v| max.max(v.abs()));
        let max_int = f32::from(self.max_int());
        let multiples = (1..=self.max_int() + 1).rev().filter(|_| largest > 0.0);
        multiples.flat_map(|k| [largest / f32::from(k), -largest / f32::from(k)]).find(|&scale| {
            narrow(self.scale_dtype(), scale).0 == scale
                && values.iter().zip(codes.iter_mut()).all(|(&value, code)| {
                    let n = (value / scale).round() + max_int;
                    *code = n as u8;
                    (0.0..=f32::from(self.largest_code())).contains(&n) && self.value(*code, scale) == value
                })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Dtype;

    const Q4: GroupQuant = GroupQuant { bits: 4, group_size: 32, dtype: Dtype::F16 };

    fn dequantized(cols: usize, words: &[u32], scales: &[u16]) -> Vec<f32> {
        let code = |col: usize| (words[col / 8] >> (4 * (col % 8)) & 15) as u8;
        let scale = |col: usize| half::f16::from_bits(scales[col / 32]).to_f32();
        (0..cols).map(|col| Q4.value(code(col), scale(col))).collect()
    }

    #[test]
    fn values_on_the_grid_are_kept() {
        for scale in [0.25f32, -0.25, 0.013_671_875, 3.0] {
            for largest in [1i32, 2, 5, 7, 8] {
                let multiple = |i: i32| if i == 9 { largest } else { (i * 5) % largest };
                let weights: Vec<f32> = (0..40).map(|i| multiple(i) as f32 * scale).collect();
                let (mut words, mut scales) = (vec![0; 8], vec![0; 2]);
                assert_eq!(Q4.requantize_into(40, &weights, &mut words, &mut scales), 0, "{scale} {largest}");
                assert_eq!(dequantized(40, &words, &scales), weights, "{scale} {largest}");
            }
        }
    }

    #[test]
    fn other_values_are_rounded_as_by_quantize() {
        let weights: Vec<f32> = (0..64).map(|i| if i < 32 { (i as f32 * 0.7).sin() } else { 0.5 }).collect();
        let (mut words, mut scales) = (vec![0; 8], vec![0; 2]);
        assert_eq!(Q4.requantize_into(64, &weights, &mut words, &mut scales), 1);
        let (expected_words, expected_scales) = Q4.quantize(1, 64, &weights);
        assert_eq!((&words[..4], scales[0]), (&expected_words[..4], expected_scales.bits[0]));
        assert_eq!(dequantized(64, &words, &scales)[32..], weights[32..]);
    }
}
