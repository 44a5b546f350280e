//! Random inputs for the kernels' cases, with fixed seeds.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
};

use half::f16;
use model_format::{
    Dtype,
    quant::{
        QUANT_FORMATS,
        group_quant::{GroupQuant, Scales},
        no_quant,
    },
};

use crate::{
    KvDtype, KvPool, PAGE, RowSpan, Rows, WeightFormat,
    gpu::{Buffer, Recorder, lock},
    kernel::CaseBuffer,
    kv::{halves, padded},
    slice::{Slice, pairs},
};

pub(crate) use crate::kernel::all_formats;

/// A small random number generator (splitmix64). A seed gives the same numbers on every machine.
pub(crate) struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in -1..1.
    pub fn value(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    pub fn values(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.value()).collect()
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

/// A random matrix: `q_weight` and `q_scale`. Codes and scales are random, so that every code and both signs of the scale occur.
pub(crate) fn random_matrix(format: WeightFormat, rows: usize, cols: usize, seed: u64) -> [CaseBuffer; 2] {
    matrix(format, [rows, cols], seed, |_| 1.0, |_, _| false)
}

/// True if an input is an outlier. As in models, every row of activations has outliers in the same columns.
pub(crate) fn is_outlier(col: usize) -> bool {
    col % 97 == 3
}

/// A random matrix for activations with [outliers](is_outlier). Odd rows have no weights for outliers, and larger weights for the other
/// inputs, so that all outputs are about as large. So errors of ordinary inputs show.
pub(crate) fn matrix_for_outliers(format: WeightFormat, rows: usize, cols: usize, seed: u64) -> [CaseBuffer; 2] {
    let is_odd = |row: usize| !row.is_multiple_of(2);
    let factor = |row| if is_odd(row) { 32768.0 } else { 1.0 };
    matrix(format, [rows, cols], seed, factor, |row, col| is_odd(row) && is_outlier(col))
}

/// A random matrix. Rows are multiplied by `factor(row)`, and weights are zero where `is_zero(row, col)`.
fn matrix(
    format: WeightFormat,
    [rows, cols]: [usize; 2],
    seed: u64,
    factor: impl Fn(usize) -> f32,
    is_zero: impl Fn(usize, usize) -> bool,
) -> [CaseBuffer; 2] {
    let mut random = Random::new(seed);
    let plain = |random: &mut Random| -> Vec<f32> {
        let value = |i: usize| {
            let (row, col, value) = (i / cols, i % cols, random.value());
            if is_zero(row, col) { 0.0 } else { value * factor(row) }
        };
        (0..rows * cols).map(value).collect()
    };
    let (q_weight, q_scale) = match format {
        WeightFormat::Group { bits, group_size } => {
            let (groups, per_word) = (format.blocks(cols), 32 / bits as usize);
            let code_bits = ((1u64 << (per_word * bits as usize)) - 1) as u32;
            let mut words: Vec<u32> = (0..rows * groups * 4).map(|_| random.next() as u32 & code_bits).collect();
            let (bits, group_size) = (bits as usize, group_size as usize);
            let zero = (1u32 << (bits - 1)) - 1;
            for (row, words) in words.chunks_exact_mut(groups * 4).enumerate() {
                for col in (0..cols).filter(|&col| is_zero(row, col)) {
                    let (group, place) = (col / group_size, col % group_size);
                    let (word, shift) = (&mut words[group * 4 + place / per_word], bits * (place % per_word));
                    *word = *word & !(((1 << bits) - 1) << shift) | zero << shift;
                }
            }
            // In this format, codes beyond the last column are zero.
            let ragged = cols % group_size;
            if ragged > 0 {
                for words in words.chunks_exact_mut(groups * 4) {
                    for (w, word) in words[groups * 4 - 4..].iter_mut().enumerate() {
                        let kept = (ragged.saturating_sub(w * per_word)).min(per_word) * bits;
                        *word &= if kept == 32 { u32::MAX } else { (1 << kept) - 1 };
                    }
                }
            }
            let scale = |i: usize| f16::from_f32(0.1 * random.value() * factor(i / groups));
            let scales: Vec<f16> = (0..rows * groups).map(scale).collect();
            (words, pairs(&scales).into_owned())
        }
        WeightFormat::F16 => {
            let values: Vec<f16> = plain(&mut random).into_iter().map(f16::from_f32).collect();
            (no_quant::f16_words(cols, &values), vec![0; 4])
        }
        WeightFormat::F32 => (no_quant::f32_words(cols, &plain(&mut random)), vec![0; 4]),
    };
    [CaseBuffer::words(q_weight), CaseBuffer::words(q_scale)]
}

/// The values `[rows, cols]` of a matrix in its device format.
pub(crate) fn values(format: WeightFormat, rows: usize, cols: usize, q_weight: &[u32], q_scale: &[u32]) -> Vec<f32> {
    match format {
        WeightFormat::Group { bits, group_size } => {
            let (bits, group_size) = (bits as usize, group_size as usize);
            let group = GroupQuant { bits, group_size, dtype: Dtype::F16 };
            let scales = Scales::f16(&halves(q_scale)[..rows * group.groups(cols)]);
            group.dequantize(rows, cols, q_weight, &scales)
        }
        WeightFormat::F16 => {
            let padded = cols.next_multiple_of(no_quant::BLOCK_SIZE);
            let all = halves(q_weight);
            all.chunks_exact(padded).take(rows).flat_map(|row| row[..cols].iter().map(|v| v.to_f32())).collect()
        }
        WeightFormat::F32 => {
            let padded = cols.next_multiple_of(no_quant::BLOCK_SIZE);
            let rows = q_weight.chunks_exact(padded).take(rows);
            rows.flat_map(|row| row[..cols].iter().map(|v| f32::from_bits(*v))).collect()
        }
    }
}

/// Multiplies a few values by 1e5: decoders have such outliers among their activations.
pub(crate) fn with_outliers(mut values: Vec<f32>) -> Vec<f32> {
    values.iter_mut().skip(3).step_by(97).for_each(|v| *v *= 1e5);
    values
}

/// A row of a pool: random values with zeros in the padding, or NaN if `is_some` is false.
pub(crate) fn cache_row(dtype: KvDtype, head_dim: usize, is_some: bool, random: &mut Random) -> Vec<u32> {
    let mut value = |c: usize| match c < head_dim {
        true if is_some => random.value(),
        true => f32::NAN,
        false => 0.0,
    };
    let padded = padded(head_dim);
    match dtype {
        KvDtype::F32 => (0..padded).map(|c| value(c).to_bits()).collect(),
        KvDtype::F16 => {
            let half = |value: f32| u32::from(f16::from_f32(value).to_bits());
            (0..padded).step_by(2).map(|c| half(value(c)) | half(value(c + 1)) << 16).collect()
        }
        KvDtype::Q8 => {
            // Codes cannot be NaN, but scales can.
            let code = |value: f32| (127.0 * value) as i8 as u8;
            let codes = (0..padded).step_by(4).map(|c| u32::from_le_bytes([0, 1, 2, 3].map(|i| code(value(c + i)))));
            let mut words: Vec<u32> = codes.collect();
            words.resize_with(dtype.row_words(head_dim), || (value(0) / 127.0).to_bits());
            words
        }
    }
}

/// The rows of a case, and the pages of their sequences in a pool with some other pages.
#[derive(Clone)]
pub(crate) struct CaseRows {
    /// Number of rows of each sequence, and position of the first one.
    spans: Vec<(usize, usize)>,
    /// Pages of each sequence, in random order.
    pages: Vec<Vec<u32>>,
    /// Pages of the pool.
    pool_pages: usize,
    /// Ids of the buffers that hold the rows.
    written: Arc<Mutex<HashSet<u64>>>,
}

/// Pages of a pool that no sequence of a case has.
const OTHER_PAGES: usize = 2;

impl CaseRows {
    /// `spans`: number of rows of each sequence, and position of the first one.
    pub fn new(spans: &[(usize, usize)]) -> CaseRows {
        let count = |(rows, past_len): &(usize, usize)| (rows + past_len).div_ceil(PAGE);
        let pool_pages = spans.iter().map(count).sum::<usize>() + OTHER_PAGES;
        let mut random = Random::new(pool_pages as u64);
        let mut order: Vec<u32> = (0..pool_pages as u32).collect();
        let pages = loop {
            (1..pool_pages).rev().for_each(|i| order.swap(i, random.below(i + 1)));
            let mut rest = order.iter().copied();
            let pages: Vec<Vec<u32>> = spans.iter().map(|span| rest.by_ref().take(count(span)).collect()).collect();
            // No sequence may be at the beginning of the pool, or have two neighboring pages in order.
            let is_plain = |pages: &Vec<u32>| pages[0] == 0 || pages.windows(2).any(|pair| pair[0] + 1 == pair[1]);
            if !pages.iter().any(is_plain) {
                break pages;
            }
        };
        CaseRows { spans: spans.to_vec(), pages, pool_pages, written: Arc::default() }
    }

    /// The sequences.
    pub fn spans(&self) -> Vec<RowSpan<'_>> {
        let both = self.spans.iter().zip(&self.pages);
        both.map(|(&(rows, past_len), pages)| RowSpan { rows, past_len, pages }).collect()
    }

    /// Number of rows.
    pub fn count(&self) -> usize {
        self.spans.iter().map(|(rows, _)| rows).sum()
    }

    /// Number of each sequence's rows, and of the tokens before.
    pub fn label(&self) -> String {
        let label = |(rows, past_len): &(usize, usize)| format!("{rows} after {past_len}");
        self.spans.iter().map(label).collect::<Vec<_>>().join(" + ")
    }

    /// A buffer with the rows.
    pub fn buffer(&self) -> CaseBuffer {
        CaseBuffer::words(Rows::words_of(&self.spans()))
    }

    /// The rows in [`CaseRows::buffer`] on the device. The tuner's buffers hold zeros, so the rows are written to a new buffer.
    pub fn on_device(&self, recorder: &Recorder, buffer: &Buffer<u32>) -> Rows {
        if lock(&self.written).insert(buffer.id()) {
            recorder.gpu().write(buffer, &Rows::words_of(&self.spans()));
        }
        Rows::in_buffer(buffer.clone(), &self.spans())
    }

    /// The pool in a buffer.
    pub fn pool(&self, kv: &Buffer<u32>, [kv_heads, head_dim]: [usize; 2], dtype: KvDtype) -> KvPool {
        KvPool { kv: kv.clone(), pages: self.pool_pages, kv_heads, head_dim, dtype }
    }

    /// Rows of the pool. Each has a key or a value of a head.
    pub fn pool_rows(&self, kv_heads: usize) -> usize {
        2 * kv_heads * self.pool_pages * PAGE
    }

    /// Words of a pool with random keys and values at the first `known` positions of each sequence, and with `absent` in the other rows.
    pub fn pool_words(
        &self,
        [kv_heads, head_dim]: [usize; 2],
        dtype: KvDtype,
        known: impl Fn(&RowSpan<'_>) -> usize,
        absent: &[u32],
        random: &mut Random,
    ) -> Vec<u32> {
        let mut words = absent.repeat(self.pool_rows(kv_heads));
        for is_value in [false, true] {
            for span in self.spans() {
                for (head, position) in (0..kv_heads).flat_map(|head| (0..known(&span)).map(move |at| (head, at))) {
                    let row = span.pool_row(kv_heads, is_value, head, position) * absent.len();
                    words[row..row + absent.len()].copy_from_slice(&cache_row(dtype, head_dim, true, random));
                }
            }
        }
        words
    }
}

/// The usual 4-bit format.
pub(crate) fn four_bits() -> WeightFormat {
    let format = QUANT_FORMATS.iter().find_map(|format| format.group().filter(|group| group.bits == 4));
    format.expect("a 4-bit format").into()
}

/// A matrix of one slice in a case's buffers.
pub(crate) fn slice(
    format: WeightFormat,
    rows: usize,
    cols: usize,
    q_weight: &Buffer<u32>,
    q_scale: &Buffer<u32>,
) -> Slice {
    Slice { first_row: 0, rows, cols, format, q_weight: q_weight.clone(), q_scale: q_scale.clone() }
}
