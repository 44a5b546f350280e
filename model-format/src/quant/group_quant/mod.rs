//! Group quantization as MLC defines it: weights in groups along K, one scale per group, zero point in the middle.
//!
//! `value = (code - max_int) * scale`. A group takes a whole number of u32 words; element `r` of a word is in its bits
//! `bits * r ..`, lowest first; words of a ragged last group are padded with zero bits. MLC writes codes
//! `0..=2 * max_int` and positive scales. Every reader takes the one code beyond and negative scales too, and our
//! quantizer uses them.
//!
//! The arithmetic of [`GroupQuant::quantize`] is done in f16, every step rounded, in MLC's order, so that the words are
//! equal bit for bit.

mod ggml;

use half::f16;

/// The numbers of a group format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupQuant {
    /// Bits per code.
    pub bits: usize,
    /// Weights per scale, along K.
    pub group_size: usize,
}

impl GroupQuant {
    /// WGSL of the same layout.
    pub const UNPACK_WGSL: &str = include_str!("unpack.wgsl");

    /// The code of the value zero, and the largest multiple of the scale that MLC uses.
    pub fn max_int(self) -> u8 {
        (1 << (self.bits - 1)) - 1
    }

    /// Codes per u32.
    pub fn codes_per_word(self) -> usize {
        32 / self.bits
    }

    /// Words per group.
    pub fn words_per_group(self) -> usize {
        self.group_size / self.codes_per_word()
    }

    /// Groups in a row of `cols` weights; the last may be ragged.
    pub fn groups(self, cols: usize) -> usize {
        cols.div_ceil(self.group_size)
    }

    /// MLC's scale of a group: `max|w| / max_int`.
    pub fn scale(self, group: &[f16]) -> f16 {
        let max_abs = group.iter().fold(f16::ZERO, |m, w| {
            let a = f16::from_bits(w.to_bits() & 0x7fff);
            if a > m { a } else { m }
        });
        max_abs / f16::from_f32(f32::from(self.max_int()))
    }

    /// MLC's code of a value: nearest, halves to even, clamped to `0..=2 * max_int`. NaN, as of 0 / 0, becomes 0.
    pub fn code(self, value: f16, scale: f16) -> u8 {
        let max_int = f16::from_f32(f32::from(self.max_int()));
        let shifted = (value / scale) + max_int;
        let rounded = shifted.to_f32().round_ties_even();
        // `max` drops NaN.
        rounded.max(0.0).min(f32::from(2 * self.max_int())) as u8
    }

    /// What a code stands for, in f32.
    pub fn value(self, code: u8, scale: f16) -> f32 {
        (f32::from(code) - f32::from(self.max_int())) * scale.to_f32()
    }

    /// Round-to-nearest of `[rows, cols]`: packed words and scales.
    pub fn quantize(self, rows: usize, cols: usize, weights: &[f32]) -> (Vec<u32>, Vec<f16>) {
        assert_eq!(weights.len(), rows * cols, "quantize: {rows} x {cols} weights");
        let mut codes = Vec::with_capacity(rows * cols);
        let mut scales = Vec::with_capacity(rows * self.groups(cols));
        let mut group = Vec::with_capacity(self.group_size);
        for row in weights.chunks_exact(cols) {
            for weights in row.chunks(self.group_size) {
                group.clear();
                group.extend(weights.iter().map(|&w| f16::from_f32(w)));
                let scale = self.scale(&group);
                scales.push(scale);
                codes.extend(group.iter().map(|&w| self.code(w, scale)));
            }
        }
        (self.pack(rows, cols, &codes), scales)
    }

    /// Packs codes `[rows, cols]` into words `[rows, groups * words_per_group]`.
    pub fn pack(self, rows: usize, cols: usize, codes: &[u8]) -> Vec<u32> {
        assert_eq!(codes.len(), rows * cols, "pack: {rows} x {cols} codes");
        let row_words = self.groups(cols) * self.words_per_group();
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

    /// The codes `[rows, cols]` of packed words.
    pub fn unpack(self, rows: usize, cols: usize, q_weight: &[u32]) -> Vec<u8> {
        let row_words = self.groups(cols) * self.words_per_group();
        assert_eq!(q_weight.len(), rows * row_words, "unpack: words of {rows} x {cols} codes");
        let mask = (1u32 << self.bits) - 1;
        let mut codes = Vec::with_capacity(rows * cols);
        for words in q_weight.chunks_exact(row_words) {
            for c in 0..cols {
                let word = words[c / self.codes_per_word()];
                codes.push(((word >> (self.bits * (c % self.codes_per_word()))) & mask) as u8);
            }
        }
        codes
    }

    /// The values `[rows, cols]` of packed words and scales.
    pub fn dequantize(self, rows: usize, cols: usize, q_weight: &[u32], q_scale: &[f16]) -> Vec<f32> {
        let groups = self.groups(cols);
        assert_eq!(q_scale.len(), rows * groups, "dequantize: one scale per row and group");
        let mut values = Vec::with_capacity(rows * cols);
        for (row, codes) in self.unpack(rows, cols, q_weight).chunks_exact(cols).enumerate() {
            for (group, codes) in codes.chunks(self.group_size).enumerate() {
                let scale = q_scale[row * groups + group];
                values.extend(codes.iter().map(|&code| self.value(code, scale)));
            }
        }
        values
    }
}
