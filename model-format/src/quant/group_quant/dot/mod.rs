//! Products in integers, for the CPU: a matrix whose rows lie side by side ([`Interleaved`]) times inputs that are rounded
//! to eight bits ([`RoundedRows`]).
//!
//! A group's dot product is a sum of `code * input` in integers, from which `max_int` times the sum of the inputs is taken
//! off; it is exact. Then `y += dot as f32 * input scale * weight scale`, group after group. Every implementation does this
//! in the same order with the same roundings, so that they agree bit for bit, whatever the number of rows.
//!
//! `portable` is the reference. `x86` has the same for vector units, chosen when the program runs: this folder is the
//! only place that knows one processor from another.
//!
//! How the rows lie: a strip is [`STRIP`] rows. Of each of its groups there are `group_size / 8` `Line`s: byte `4 r + j`
//! of line `s` holds row `r`'s codes `4 s + j`, in the low half, and `group_size / 2 + 4 s + j`. So four neighbouring
//! inputs, repeated, meet a whole line. Formats of three bits lie in halves of bytes as well. Of codes in eight bits, which no
//! format has, there are twice as many lines, and byte `4 r + j` of line `s` is row `r`'s code `4 s + j`.

mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::ops::Range;

use half::f16;

use super::GroupQuant;
use crate::{Dtype, quant::QuantizedMatrix};

/// Rows that lie side by side.
pub const STRIP: usize = 16;

/// Rows of inputs that are multiplied before the next strip is, so that they stay in a core's cache.
const INPUT_ROWS: usize = 64;

/// How matrices in floating point are rounded for products in integers.
const EIGHT_BITS: GroupQuant = GroupQuant { bits: 8, group_size: 32, dtype: Dtype::F16 };

/// Four codes of each half of a group, or four of eight bits, of every row of a strip. As wide as a line of the cache.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
struct Line([u8; 4 * STRIP]);

/// The instructions that products are computed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Instructions {
    /// What every processor has.
    Portable,
    /// AVX2: products of bytes in pairs.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-VNNI: products of bytes in fours.
    #[cfg(target_arch = "x86_64")]
    AvxVnni,
    /// The same, of 64 bytes at a time.
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
}

impl Instructions {
    /// Those that this machine has, the fastest last.
    pub fn available() -> Vec<Instructions> {
        #[cfg(target_arch = "x86_64")]
        let others = x86::available();
        #[cfg(not(target_arch = "x86_64"))]
        let others = Vec::new();
        [vec![Instructions::Portable], others].concat()
    }

    /// The fastest that this machine has.
    pub fn best() -> Instructions {
        Instructions::available().pop().expect("there is the portable way")
    }

    /// Most rows of inputs that are multiplied together: as many as there are registers for.
    fn largest_tile(self) -> usize {
        match self {
            Instructions::Portable => 1,
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx2 | Instructions::AvxVnni => 4,
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx512Vnni => 8,
        }
    }
}

/// A matrix `[rows, cols]` of a group format, its rows side by side.
#[derive(Debug, Clone)]
pub struct Interleaved {
    group: GroupQuant,
    rows: usize,
    cols: usize,
    /// `[strips, groups, lines of a group]`.
    lines: Vec<Line>,
    /// `[strips, groups]`, one of each row.
    scales: Vec<[f16; STRIP]>,
    instructions: Instructions,
}

/// Rows of inputs in eight bits, a scale for each group.
///
/// Rows that are multiplied together lie together, in tiles of `Instructions::largest_tile` rows, the last ones of fewer:
/// of each group first one row's numbers, then the next one's.
#[derive(Debug, Clone)]
pub struct RoundedRows {
    groups: usize,
    largest_tile: usize,
    /// `[tiles, groups, rows of the tile, group_size]`, from -127 to 127; what a row lacks to whole groups is zero.
    codes: Vec<i8>,
    /// `[tiles, groups, rows of the tile]`: the value of a code of one.
    scales: Vec<f32>,
    /// `[tiles, groups, rows of the tile]`: what is left to take off a sum of products, `-max_int` times the sum of the codes.
    offsets: Vec<i32>,
}

/// One strip.
#[derive(Clone, Copy)]
struct Strip<'a> {
    /// `[groups, lines of a group]`.
    lines: &'a [Line],
    /// `[groups]`.
    scales: &'a [[f16; STRIP]],
}

/// A tile of inputs: rows that are multiplied together.
#[derive(Clone, Copy)]
struct Tile<'a> {
    /// `[groups, rows, group_size]`.
    codes: &'a [i8],
    /// `[groups, rows]`.
    scales: &'a [f32],
    /// `[groups, rows]`.
    offsets: &'a [i32],
}

impl Interleaved {
    /// The same values side by side; `None` where a scale is no f16 number.
    pub fn new(matrix: &QuantizedMatrix) -> Option<Interleaved> {
        let (group, rows, cols) = (matrix.group(), matrix.rows, matrix.cols);
        let scales = matrix.q_scale.to_f16()?;
        let (groups, row_words) = (group.groups(cols), group.row_words(cols));
        let mut interleaved = Interleaved::empty(group, rows, cols);
        for (row, words) in matrix.q_weight.chunks_exact(row_words).enumerate() {
            for (i, words) in words.chunks_exact(group.words_per_group()).enumerate() {
                let lines = interleaved.put_scale(row, i, scales[row * groups + i]);
                put_group(group, words, row % STRIP, lines);
            }
        }
        Some(interleaved)
    }

    /// Values `[rows, cols]` rounded to eight bits, in groups of 32 with a scale each, side by side; `None` where a scale is no
    /// f16 number.
    ///
    /// Panics when `values` has another length.
    pub fn rounded(rows: usize, cols: usize, values: &[f32]) -> Option<Interleaved> {
        assert_eq!(values.len(), rows * cols, "rounded: {rows} x {cols} values");
        let mut interleaved = Interleaved::empty(EIGHT_BITS, rows, cols);
        for (row, values) in values.chunks_exact(cols).enumerate() {
            for (i, values) in values.chunks(EIGHT_BITS.group_size).enumerate() {
                // NaN is above all.
                let largest = values.iter().fold(0.0, |max: f32, v| if v.abs() <= max { max } else { v.abs() });
                let middle = f32::from(EIGHT_BITS.max_int());
                let scale = f16::from_f32(largest / middle);
                if !scale.is_finite() {
                    return None;
                }
                let inverse = if scale == f16::ZERO { 0.0 } else { 1.0 / scale.to_f32() };
                let lines = interleaved.put_scale(row, i, scale);
                for (k, value) in values.iter().enumerate() {
                    // The scale may have been rounded down: the largest is then beyond the last code.
                    let code = (value * inverse).round_ties_even().clamp(-middle, middle) + middle;
                    lines[k / 4].0[4 * (row % STRIP) + k % 4] = code as u8;
                }
            }
        }
        Some(interleaved)
    }

    fn empty(group: GroupQuant, rows: usize, cols: usize) -> Interleaved {
        let groups = rows.div_ceil(STRIP) * group.groups(cols);
        Interleaved {
            group,
            rows,
            cols,
            lines: vec![Line([0; 4 * STRIP]); groups * lines_per_group(group)],
            scales: vec![[f16::ZERO; STRIP]; groups],
            instructions: Instructions::best(),
        }
    }

    /// Puts the scale of group `i` of a row, and returns the lines that its codes belong in.
    fn put_scale(&mut self, row: usize, i: usize, scale: f16) -> &mut [Line] {
        let (at, lines) = (row / STRIP * self.group.groups(self.cols) + i, lines_per_group(self.group));
        self.scales[at][row % STRIP] = scale;
        &mut self.lines[at * lines..][..lines]
    }

    /// Computes with other instructions, of [`Instructions::available`]: for tests and measurements.
    ///
    /// Panics when this machine does not have them.
    pub fn with_instructions(self, instructions: Instructions) -> Interleaved {
        assert!(Instructions::available().contains(&instructions), "{instructions:?} on this machine");
        Interleaved { instructions, ..self }
    }

    /// Outputs.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Strips: [`STRIP`] rows each, but for the last.
    pub fn strips(&self) -> usize {
        self.rows.div_ceil(STRIP)
    }

    /// The rows of some strips.
    pub fn rows_of(&self, strips: &Range<usize>) -> Range<usize> {
        strips.start * STRIP..(strips.end * STRIP).min(self.rows)
    }

    /// Bytes that a matrix `[rows, cols]` takes so.
    pub fn bytes(group: GroupQuant, rows: usize, cols: usize) -> usize {
        let groups = rows.div_ceil(STRIP) * group.groups(cols);
        groups * (lines_per_group(group) * size_of::<Line>() + size_of::<[f16; STRIP]>())
    }

    /// The values of one row, in f32.
    pub fn row(&self, row: usize) -> Vec<f32> {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        let (strip, lane) = (self.strip(row / STRIP), row % STRIP);
        let mut values = Vec::with_capacity(strip.scales.len() * self.group.group_size);
        for (lines, scales) in strip.lines.chunks_exact(lines_per_group(self.group)).zip(strip.scales) {
            let scale = scales[lane].to_f32();
            let bytes = lines.iter().flat_map(|line| &line.0[4 * lane..][..4]);
            if self.group.bits == 8 {
                values.extend(bytes.map(|&code| self.group.value(code, scale)));
                continue;
            }
            for half in 0..2 {
                let codes = bytes.clone().map(|byte| byte >> (4 * half) & 15);
                values.extend(codes.map(|code| self.group.value(code, scale)));
            }
        }
        values.truncate(self.cols);
        values
    }

    /// Rounds rows of inputs `[rows, cols]` for this matrix.
    pub fn round(&self, inputs: &[f32]) -> RoundedRows {
        RoundedRows::new(self.group, self.cols, self.instructions.largest_tile(), inputs)
    }

    /// `output[m, n] = sum over k of inputs[m, k] * w[n, k]` for the rows `n` of `strips`: `[inputs, rows of strips]`.
    pub fn multiply(&self, inputs: &RoundedRows, strips: Range<usize>, output: &mut [f32]) {
        let rows = self.rows_of(&strips);
        let width = rows.len();
        assert_eq!(inputs.groups, self.group.groups(self.cols), "multiply: inputs of another matrix");
        assert_eq!(output.len(), inputs.len() * width, "multiply: {} x {width} outputs", inputs.len());
        assert_eq!(inputs.largest_tile, self.instructions.largest_tile(), "multiply: inputs of other instructions");
        for first in (0..inputs.len()).step_by(INPUT_ROWS) {
            let block = first..(first + INPUT_ROWS).min(inputs.len());
            for index in strips.clone() {
                let column = index * STRIP - rows.start;
                let columns = column..(column + STRIP).min(width);
                let strip = self.strip(index);
                for tile in tiles(block.clone(), inputs.largest_tile) {
                    let first = tile.start * width;
                    let output = &mut output[first..tile.end * width];
                    self.multiply_tile(strip, inputs.tile(&tile), tile.len(), |row, values| {
                        output[row * width..][columns.clone()].copy_from_slice(&values[..columns.len()]);
                    });
                }
            }
        }
    }

    /// The products of a tile of so many rows and a strip.
    #[inline(always)]
    fn multiply_tile(&self, strip: Strip<'_>, tile: Tile<'_>, rows: usize, mut put: impl FnMut(usize, &[f32; STRIP])) {
        macro_rules! by_rows {
            ($module:ident $function:ident, $group:literal, $steps:literal, $($rows:literal)+) => {
                match rows {
                    $($rows => {
                        for (row, values) in $module::$function::<$group, $steps, $rows>(strip, tile).iter().enumerate() {
                            put(row, values);
                        }
                    })+
                    _ => unreachable!("tiles have fewer rows"),
                }
            };
        }
        // Lines of a group are a parameter of their own: the language cannot divide there.
        match (self.instructions, self.group.group_size) {
            #[cfg(target_arch = "x86_64")]
            (Instructions::Avx512Vnni, 32) if self.group.bits == 8 => by_rows!(x86 avx512_vnni, 32, 8, 1 2 4 8),
            #[cfg(target_arch = "x86_64")]
            (Instructions::AvxVnni, 32) if self.group.bits == 8 => by_rows!(x86 avx_vnni, 32, 8, 1 2 4),
            #[cfg(target_arch = "x86_64")]
            (Instructions::Avx2, 32) if self.group.bits == 8 => by_rows!(x86 avx2, 32, 8, 1 2 4),
            (Instructions::Portable, 32) if self.group.bits == 8 => by_rows!(portable multiply, 32, 8, 1),
            #[cfg(target_arch = "x86_64")]
            (Instructions::Avx512Vnni, 32) => by_rows!(x86 avx512_vnni, 32, 4, 1 2 4 8),
            #[cfg(target_arch = "x86_64")]
            (Instructions::Avx512Vnni, _) => by_rows!(x86 avx512_vnni, 40, 5, 1 2 4 8),
            #[cfg(target_arch = "x86_64")]
            (Instructions::AvxVnni, 32) => by_rows!(x86 avx_vnni, 32, 4, 1 2 4),
            #[cfg(target_arch = "x86_64")]
            (Instructions::AvxVnni, _) => by_rows!(x86 avx_vnni, 40, 5, 1 2 4),
            #[cfg(target_arch = "x86_64")]
            (Instructions::Avx2, 32) => by_rows!(x86 avx2, 32, 4, 1 2 4),
            #[cfg(target_arch = "x86_64")]
            (Instructions::Avx2, _) => by_rows!(x86 avx2, 40, 5, 1 2 4),
            (Instructions::Portable, 32) => by_rows!(portable multiply, 32, 4, 1),
            (Instructions::Portable, _) => by_rows!(portable multiply, 40, 5, 1),
        }
    }

    fn strip(&self, index: usize) -> Strip<'_> {
        let groups = self.group.groups(self.cols);
        let lines = groups * lines_per_group(self.group);
        Strip { lines: &self.lines[index * lines..][..lines], scales: &self.scales[index * groups..][..groups] }
    }
}

impl RoundedRows {
    /// Rounds rows `[rows, cols]`, each group of `group` by itself to the nearest of 255 multiples of a scale.
    fn new(group: GroupQuant, cols: usize, largest_tile: usize, inputs: &[f32]) -> RoundedRows {
        let (rows, groups) = (inputs.len() / cols, group.groups(cols));
        assert_eq!(inputs.len(), rows * cols, "round: rows of {cols} inputs");
        let mut rounded = RoundedRows {
            groups,
            largest_tile,
            codes: vec![0; rows * groups * group.group_size],
            scales: vec![0.0; rows * groups],
            offsets: vec![0; rows * groups],
        };
        for tile in tiles(0..rows, largest_tile) {
            for row in tile.clone() {
                for (i, values) in inputs[row * cols..][..cols].chunks(group.group_size).enumerate() {
                    let at = tile.start * groups + i * tile.len() + row - tile.start;
                    let codes = &mut rounded.codes[at * group.group_size..][..group.group_size];
                    let (scale, sum) = round_group(values, codes);
                    rounded.scales[at] = scale;
                    rounded.offsets[at] = -i32::from(group.max_int()) * sum;
                }
            }
        }
        rounded
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.scales.len() / self.groups
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.scales.is_empty()
    }

    fn tile(&self, rows: &Range<usize>) -> Tile<'_> {
        let size = self.codes.len() / self.scales.len();
        let groups = rows.start * self.groups..rows.end * self.groups;
        Tile {
            codes: &self.codes[groups.start * size..groups.end * size],
            scales: &self.scales[groups.clone()],
            offsets: &self.offsets[groups],
        }
    }
}

/// Divides rows into tiles of `largest` rows and then of half as many, a quarter ...; `largest` is a power of two.
fn tiles(rows: Range<usize>, largest: usize) -> impl Iterator<Item = Range<usize>> {
    let (mut next, mut size) = (rows.start, largest);
    std::iter::from_fn(move || {
        while size > rows.end - next {
            size /= 2;
        }
        (size > 0).then(|| {
            next += size;
            next - size..next
        })
    })
}

/// Lines of a group: of four codes a row, or of twice as many.
fn lines_per_group(group: GroupQuant) -> usize {
    group.group_size / if group.bits == 8 { 4 } else { 8 }
}

/// Puts the packed codes of a row's group into its place in the strip's lines, which are zero there.
fn put_group(group: GroupQuant, words: &[u32], lane: usize, lines: &mut [Line]) {
    let steps = lines.len();
    if group.bits == 4 {
        // Two words, of eight codes each, make the bytes of two lines.
        let (low, high) = words.split_at(steps / 2);
        for (lines, (&low, &high)) in lines.chunks_exact_mut(2).zip(low.iter().zip(high)) {
            let bytes = (spread(low) | spread(high) << 4).to_le_bytes();
            for (line, bytes) in lines.iter_mut().zip(bytes.chunks_exact(4)) {
                line.0[4 * lane..][..4].copy_from_slice(bytes);
            }
        }
        return;
    }
    for (k, code) in group.unpack(1, 8 * steps, words).into_iter().enumerate() {
        let (half, k) = (k / (4 * steps), k % (4 * steps));
        lines[k / 4].0[4 * lane + k % 4] |= code << (4 * half);
    }
}

/// Eight codes of four bits as bytes.
fn spread(word: u32) -> u64 {
    let x = u64::from(word);
    let x = (x | x << 16) & 0x0000_ffff_0000_ffff;
    let x = (x | x << 8) & 0x00ff_00ff_00ff_00ff;
    (x | x << 4) & 0x0f0f_0f0f_0f0f_0f0f
}

/// Rounds a group: its scale, and the sum of its codes.
fn round_group(values: &[f32], codes: &mut [i8]) -> (f32, i32) {
    // Sizes of floats are in the order of their bits, and NaN is above all: a maximum that vector code can take.
    let largest = values.iter().fold(0, |max: i32, v| max.max(v.abs().to_bits() as i32));
    let largest = f32::from_bits(largest as u32);
    // What is smaller has no inverse, and adds nothing to any sum.
    let inverse = if largest < 1e-35 { 0.0 } else { 127.0 / largest };
    let mut sum = 0;
    for (code, value) in codes.iter_mut().zip(values) {
        // The last place of 1.5 * 2^23 is one: adding it rounds to a whole number, halves to even, which is then in the
        // low bits.
        *code = (value * inverse + 12_582_912.0).to_bits() as i8;
        sum += i32::from(*code);
    }
    (largest / 127.0, sum)
}

#[cfg(test)]
mod tests;
