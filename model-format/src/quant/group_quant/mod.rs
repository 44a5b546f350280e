//! MLC's group quantization: groups of weights along K, one scale per group, zero in the middle of the codes.
//!
//! A value is `(code - max_int) * scale`. A group takes a whole number of u32 words. Element `r` of a word has the bits
//! from `bits * r` on, lowest first. Unused bits are zero, also in an incomplete last group. MLC writes codes `0..=2 *
//! max_int` and positive scales. All readers also support the one code above this range and negative scales; our
//! quantizer uses both.
//!
//! [`GroupQuant::quantize`] computes in the format's number type, rounds after each step and keeps MLC's order, so that
//! the words equal MLC's bit for bit.

pub mod dot;
mod requantize;
mod rounding;
mod scales;

pub use scales::{Scales, bf16_on_disk};

use crate::Dtype;
use rounding::{BF16, F16, F32, Rounding};
pub(crate) use scales::narrow;
use scales::scale_bits;

/// Parameters of a group format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupQuant {
    /// Bits per code.
    pub bits: usize,
    /// Weights per scale, along K.
    pub group_size: usize,
    /// Number type of the arithmetic: f16, bf16 or f32.
    pub dtype: Dtype,
}

impl GroupQuant {
    /// WGSL that reads the same layout.
    pub const UNPACK_WGSL: &str = include_str!("unpack.wgsl");

    /// The code of zero. Also the largest multiple of the scale that MLC uses.
    pub fn max_int(self) -> u8 {
        (1 << (self.bits - 1)) - 1
    }

    /// The largest code, `2^bits - 1`.
    pub fn largest_code(self) -> u8 {
        ((1u16 << self.bits) - 1) as u8
    }

    /// Codes per u32.
    pub fn codes_per_word(self) -> usize {
        32 / self.bits
    }

    /// Words per group.
    pub fn words_per_group(self) -> usize {
        self.group_size / self.codes_per_word()
    }

    /// Groups in a row of `cols` weights. The last may be incomplete.
    pub fn groups(self, cols: usize) -> usize {
        cols.div_ceil(self.group_size)
    }

    /// Words in a row of `cols` weights.
    pub fn row_words(self, cols: usize) -> usize {
        self.groups(cols) * self.words_per_group()
    }

    /// Number type of stored scales. MLC stores f32 as bf16.
    pub fn scale_dtype(self) -> Dtype {
        if self.dtype == Dtype::F16 { Dtype::F16 } else { Dtype::BF16 }
    }

    /// The value of a code, in f32.
    pub fn value(self, code: u8, scale: f32) -> f32 {
        (f32::from(code) - f32::from(self.max_int())) * scale
    }

    /// Quantizes row-major `[rows, cols]` by round-to-nearest. Returns packed words `[rows, row_words]` and scales
    /// `[rows, groups]`.
    ///
    /// # Panics
    ///
    /// If the length of `weights` is wrong, or no format has these parameters.
    pub fn quantize(self, rows: usize, cols: usize, weights: &[f32]) -> (Vec<u32>, Scales) {
        assert_eq!(weights.len(), rows * cols, "quantize: {rows} x {cols} weights");
        let mut words = vec![0; rows * self.row_words(cols)];
        let mut scales = Scales { dtype: self.scale_dtype(), bits: vec![0; rows * self.groups(cols)] };
        self.quantize_into(cols, weights, &mut words, &mut scales.bits);
        (words, scales)
    }

    /// As [`GroupQuant::quantize`], into existing memory: words `[rows, row_words]` and scales `[rows, groups]`.
    ///
    /// # Panics
    ///
    /// If a length is wrong, or no format has these parameters.
    pub fn quantize_into(self, cols: usize, weights: &[f32], words: &mut [u32], scales: &mut [u16]) {
        // Specialize for the existing formats, so that loops over a group have constant lengths.
        match (self.bits, self.group_size) {
            (4, 32) => self.quantize_groups::<4, 32>(cols, weights, words, scales),
            (3, 40) => self.quantize_groups::<3, 40>(cols, weights, words, scales),
            (bits, group_size) => panic!("quantize: no format has {bits} bits in groups of {group_size}"),
        }
    }

    fn quantize_groups<const BITS: usize, const GROUP: usize>(
        self,
        cols: usize,
        weights: &[f32],
        words: &mut [u32],
        scales: &mut [u16],
    ) {
        match self.dtype {
            Dtype::F16 => self.quantize_in::<F16, BITS, GROUP>(cols, weights, words, scales),
            Dtype::BF16 => self.quantize_in::<BF16, BITS, GROUP>(cols, weights, words, scales),
            _ => self.quantize_in::<F32, BITS, GROUP>(cols, weights, words, scales),
        }
    }

    fn quantize_in<T: Rounding, const BITS: usize, const GROUP: usize>(
        self,
        cols: usize,
        weights: &[f32],
        words: &mut [u32],
        scales: &mut [u16],
    ) {
        let (row_words, groups) = (self.row_words(cols), self.groups(cols));
        assert_eq!(
            weights.len() / cols * row_words,
            words.len(),
            "quantize: number of words for rows of {cols} weights"
        );
        assert_eq!(
            weights.len() / cols * groups,
            scales.len(),
            "quantize: number of scales for rows of {cols} weights"
        );
        let scale_dtype = self.scale_dtype();
        let rows = words.chunks_exact_mut(row_words).zip(scales.chunks_exact_mut(groups));
        for (row, (words, scales)) in weights.chunks_exact(cols).zip(rows) {
            let groups = words.chunks_exact_mut(self.words_per_group()).zip(scales);
            for (weights, (words, scale)) in row.chunks(GROUP).zip(groups) {
                // Pad an incomplete group with zeros, which do not affect the maximum. Their codes are cleared below.
                let mut values = [0f32; GROUP];
                match <&[f32; GROUP]>::try_from(weights) {
                    Ok(weights) => values.iter_mut().zip(weights).for_each(|(value, &weight)| *value = T::cast(weight)),
                    Err(_) => values.iter_mut().zip(weights).for_each(|(value, &weight)| *value = T::cast(weight)),
                }
                let (exact, mut codes) = group_codes::<T, BITS, GROUP>(&values);
                codes[weights.len()..].fill(0);
                *scale = scale_bits(scale_dtype, exact);
                for (word, codes) in words.iter_mut().zip(codes.chunks_exact(32 / BITS)) {
                    *word = codes.iter().enumerate().fold(0, |word, (r, code)| word | code << (BITS * r));
                }
            }
        }
    }

    /// Packs codes `[rows, cols]` into words `[rows, groups * words_per_group]`.
    ///
    /// # Panics
    ///
    /// If the length of `codes` is wrong.
    pub fn pack(self, rows: usize, cols: usize, codes: &[u8]) -> Vec<u32> {
        assert_eq!(codes.len(), rows * cols, "pack: {rows} x {cols} codes");
        let row_words = self.row_words(cols);
        let mut words = vec![0u32; rows * row_words];
        for (row, words) in codes.chunks_exact(cols).zip(words.chunks_exact_mut(row_words)) {
            for (word, codes) in words.iter_mut().zip(row.chunks(self.codes_per_word())) {
                for (r, &code) in codes.iter().enumerate() {
                    *word |= u32::from(code) << (self.bits * r);
                }
            }
        }
        words
    }

    /// Unpacks words to codes `[rows, cols]`.
    ///
    /// # Panics
    ///
    /// If the length of `q_weight` is wrong.
    pub fn unpack(self, rows: usize, cols: usize, q_weight: &[u32]) -> Vec<u8> {
        let row_words = self.row_words(cols);
        assert_eq!(q_weight.len(), rows * row_words, "unpack: words of {rows} x {cols} codes");
        let mask = u32::from(self.largest_code());
        let mut codes = Vec::with_capacity(rows * cols);
        for words in q_weight.chunks_exact(row_words) {
            for c in 0..cols {
                let word = words[c / self.codes_per_word()];
                codes.push(((word >> (self.bits * (c % self.codes_per_word()))) & mask) as u8);
            }
        }
        codes
    }

    /// The values `[rows, cols]` of packed words and scales, in f32.
    ///
    /// # Panics
    ///
    /// If a length is wrong.
    pub fn dequantize(self, rows: usize, cols: usize, q_weight: &[u32], q_scale: &Scales) -> Vec<f32> {
        let groups = self.groups(cols);
        assert_eq!(q_scale.len(), rows * groups, "dequantize: one scale per row and group");
        let mut values = Vec::with_capacity(rows * cols);
        for (row, codes) in self.unpack(rows, cols, q_weight).chunks_exact(cols).enumerate() {
            for (group, codes) in codes.chunks(self.group_size).enumerate() {
                let scale = q_scale.get(row * groups + group);
                values.extend(codes.iter().map(|&code| self.value(code, scale)));
            }
        }
        values
    }
}

/// MLC's scale of a group, `max|w| / max_int`, and the codes. `values` must already be rounded to the format's type.
#[inline(always)]
fn group_codes<T: Rounding, const BITS: usize, const GROUP: usize>(values: &[f32; GROUP]) -> (f32, [u32; GROUP]) {
    let max_int = ((1 << (BITS - 1)) - 1) as f32;
    let mut codes = [0; GROUP];
    // The bits of non-negative floats have the same order as the floats, and NaN is the largest. Compilers vectorize
    // this maximum.
    let largest = values.iter().fold(0, |max: i32, v| max.max(v.abs().to_bits() as i32));
    let scale = T::cast(f32::from_bits(largest as u32) / max_int);
    // Round to nearest even, and clamp.
    if scale > 0.0 && scale.is_finite() {
        for (code, &value) in codes.iter_mut().zip(values) {
            let shifted = T::near(T::near(value / scale) + max_int);
            let shifted = if shifted > 0.0 { shifted } else { 0.0 };
            let clamped = if shifted < 2.0 * max_int { shifted } else { 2.0 * max_int };
            // Adding 2^23, whose last place is 1, rounds to an integer and puts it into the low bits.
            *code = (clamped + 8_388_608.0).to_bits() & 0xff;
        }
        return (scale, codes);
    }
    // `max` ignores NaN weights here. A NaN quotient, for example 0 / 0, becomes code 0.
    let max_abs = values.iter().fold(0f32, |max, v| max.max(v.abs()));
    let scale = T::cast(max_abs / max_int);
    for (code, &value) in codes.iter_mut().zip(values) {
        let shifted = T::cast(T::cast(value / scale) + max_int);
        *code = shifted.round_ties_even().max(0.0).min(2.0 * max_int) as u32;
    }
    (scale, codes)
}
