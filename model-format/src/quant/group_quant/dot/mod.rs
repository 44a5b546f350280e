//! Integer matrix products on the CPU: a matrix with interleaved rows ([`Interleaved`]) times inputs rounded to eight
//! bits ([`RoundedRows`]).
//!
//! The dot product of a group is the integer sum of `code * input`, minus `max_int` times the sum of the inputs. It is
//! exact. Then `y += dot as f32 * input_scale * weight_scale` for each group in order. All implementations use this
//! order and the same rounding, so their results are equal bit for bit, for any number of rows.
//!
//! `portable` is the reference. `x86` uses vector units and is selected at run time. No code outside this folder
//! distinguishes processors.
//!
//! Layout: a strip is [`STRIP`] rows. Each group of a strip has `group_size / 8` `Line`s. Byte `4 r + j` of line `s`
//! has two codes of row `r`: code `4 s + j` in the low half, and code `group_size / 2 + 4 s + j` in the high half. Four
//! consecutive inputs, repeated, therefore match a whole line. Three-bit codes also take half a byte each. Eight-bit
//! codes, which no format has, need twice as many lines; byte `4 r + j` of line `s` is code `4 s + j` of row `r`.

mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::ops::Range;

use half::f16;

use super::GroupQuant;
use crate::{Dtype, quant::QuantizedMatrix};

/// Number of interleaved rows.
pub const STRIP: usize = 16;

/// Number of input rows to multiply by a strip before the next strip. They fit into a core's cache.
const INPUT_ROWS: usize = 64;

/// The format for rounding floating-point matrices.
const EIGHT_BITS: GroupQuant = GroupQuant { bits: 8, group_size: 32, dtype: Dtype::F16 };

/// Four codes from each half of a group, or four eight-bit codes, of all rows in a strip. The size of a cache line.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
struct Line([u8; 4 * STRIP]);

/// Instruction sets for the products.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Instructions {
    /// Instructions of every processor.
    Portable,
    /// AVX2: sums of two byte products.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-VNNI: sums of four byte products, 32 bytes at a time.
    #[cfg(target_arch = "x86_64")]
    AvxVnni,
    /// AVX-512 VNNI: sums of four byte products, 64 bytes at a time.
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
}

impl Instructions {
    /// The sets of this machine, the fastest last.
    pub fn available() -> Vec<Instructions> {
        #[cfg(target_arch = "x86_64")]
        let others = x86::available();
        #[cfg(not(target_arch = "x86_64"))]
        let others = Vec::new();
        [vec![Instructions::Portable], others].concat()
    }

    /// The fastest set of this machine.
    pub fn best() -> Instructions {
        Instructions::available().pop().expect("`Portable` is always available")
    }

    /// Maximum number of input rows to multiply together, limited by the number of registers. A power of two.
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

/// A matrix `[rows, cols]` of a group format, with interleaved rows.
#[derive(Debug, Clone)]
pub struct Interleaved {
    group: GroupQuant,
    rows: usize,
    cols: usize,
    /// `[strips, groups, lines of a group]`.
    lines: Vec<Line>,
    /// `[strips, groups]`, each with one scale per row.
    scales: Vec<[f16; STRIP]>,
    instructions: Instructions,
}

/// Input rows in eight bits, with a scale per group.
///
/// Rows that are multiplied together form a tile of at most `Instructions::largest_tile` rows. In a tile, each group
/// has the codes of all rows, one row after the other.
#[derive(Debug, Clone)]
pub struct RoundedRows {
    groups: usize,
    largest_tile: usize,
    /// `[tiles, groups, rows of the tile, group_size]`, from -127 to 127. Zeros complete the last group of a row.
    codes: Vec<i8>,
    /// `[tiles, groups, rows of the tile]`: the scale, which is the value of code 1.
    scales: Vec<f32>,
    /// `[tiles, groups, rows of the tile]`: `-max_int` times the sum of the codes, to add to the sum of products.
    offsets: Vec<i32>,
}

/// A strip of rows.
#[derive(Clone, Copy)]
struct Strip<'a> {
    /// `[groups, lines of a group]`.
    lines: &'a [Line],
    /// `[groups]`.
    scales: &'a [[f16; STRIP]],
}

/// A tile of input rows, which are multiplied together.
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
    /// Interleaves the rows of a matrix. `None` if a scale is not exact in f16.
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

    /// Rounds values `[rows, cols]` to eight bits in groups of 32, and interleaves the rows. `None` if a scale is not
    /// finite in f16.
    ///
    /// # Panics
    ///
    /// If the length of `values` is wrong.
    pub fn rounded(rows: usize, cols: usize, values: &[f32]) -> Option<Interleaved> {
        assert_eq!(values.len(), rows * cols, "rounded: {rows} x {cols} values");
        let mut interleaved = Interleaved::empty(EIGHT_BITS, rows, cols);
        for (row, values) in values.chunks_exact(cols).enumerate() {
            for (i, values) in values.chunks(EIGHT_BITS.group_size).enumerate() {
                // NaN counts as the largest value, and makes the scale NaN.
                let largest = values.iter().fold(0.0, |max: f32, v| if v.abs() <= max { max } else { v.abs() });
                let middle = f32::from(EIGHT_BITS.max_int());
                let scale = f16::from_f32(largest / middle);
                if !scale.is_finite() {
                    return None;
                }
                let inverse = if scale == f16::ZERO { 0.0 } else { 1.0 / scale.to_f32() };
                let lines = interleaved.put_scale(row, i, scale);
                for (k, value) in values.iter().enumerate() {
                    // Clamp: if the scale was rounded down, the largest value exceeds the last code.
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

    /// Stores the scale of group `i` of a row, and returns the lines for its codes.
    fn put_scale(&mut self, row: usize, i: usize, scale: f16) -> &mut [Line] {
        let (at, lines) = (row / STRIP * self.group.groups(self.cols) + i, lines_per_group(self.group));
        self.scales[at][row % STRIP] = scale;
        &mut self.lines[at * lines..][..lines]
    }

    /// Selects the instructions, for tests and measurements.
    ///
    /// # Panics
    ///
    /// If [`Instructions::available`] does not list them.
    pub fn with_instructions(self, instructions: Instructions) -> Interleaved {
        assert!(Instructions::available().contains(&instructions), "{instructions:?} is not available on this machine");
        Interleaved { instructions, ..self }
    }

    /// Number of outputs.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of inputs.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Number of strips of [`STRIP`] rows. The last may have fewer.
    pub fn strips(&self) -> usize {
        self.rows.div_ceil(STRIP)
    }

    /// The range of rows in a range of strips.
    pub fn rows_of(&self, strips: &Range<usize>) -> Range<usize> {
        strips.start * STRIP..(strips.end * STRIP).min(self.rows)
    }

    /// Size in bytes of an interleaved matrix `[rows, cols]`.
    pub fn bytes(group: GroupQuant, rows: usize, cols: usize) -> usize {
        let groups = rows.div_ceil(STRIP) * group.groups(cols);
        groups * (lines_per_group(group) * size_of::<Line>() + size_of::<[f16; STRIP]>())
    }

    /// The values of a row, in f32.
    ///
    /// # Panics
    ///
    /// If `row` is out of range.
    pub fn row(&self, row: usize) -> Vec<f32> {
        assert!(row < self.rows, "row: {row} is out of range for {} rows", self.rows);
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

    /// Rounds input rows `[rows, cols]` for multiplication by this matrix.
    ///
    /// # Panics
    ///
    /// If the length of `inputs` is not a multiple of the number of inputs.
    pub fn round(&self, inputs: &[f32]) -> RoundedRows {
        RoundedRows::new(self.group, self.cols, self.instructions.largest_tile(), inputs)
    }

    /// Computes `output[m, n] = sum over k of inputs[m, k] * w[n, k]` for the rows `n` of `strips`. The shape of
    /// `output` is `[input rows, rows of strips]`.
    ///
    /// # Panics
    ///
    /// If `inputs` were rounded for another matrix or other instructions, or the length of `output` is wrong.
    pub fn multiply(&self, inputs: &RoundedRows, strips: Range<usize>, output: &mut [f32]) {
        let rows = self.rows_of(&strips);
        let width = rows.len();
        assert_eq!(inputs.groups, self.group.groups(self.cols), "multiply: inputs rounded for another matrix");
        assert_eq!(output.len(), inputs.len() * width, "multiply: {} x {width} outputs", inputs.len());
        assert_eq!(
            inputs.largest_tile,
            self.instructions.largest_tile(),
            "multiply: inputs rounded for other instructions"
        );
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

    /// Multiplies a tile of `rows` input rows by a strip. Calls `put` with each row and its outputs.
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
                    _ => unreachable!("tiles have at most `largest_tile` rows"),
                }
            };
        }
        // The number of lines per group is a separate parameter: const generics do not support division.
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
    /// Rounds rows `[rows, cols]` group by group to the nearest of 255 multiples of a scale.
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

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.scales.len() / self.groups
    }

    /// True if there are no rows.
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

/// Divides rows into tiles of `largest` rows, a power of two. The rest becomes tiles of half as many rows, a quarter,
/// and so on.
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

/// Number of lines per group. A line has four eight-bit codes per row, or eight smaller codes.
fn lines_per_group(group: GroupQuant) -> usize {
    group.group_size / if group.bits == 8 { 4 } else { 8 }
}

/// Copies the packed codes of a row's group to the group's lines, which must be zero for this row.
fn put_group(group: GroupQuant, words: &[u32], lane: usize, lines: &mut [Line]) {
    let steps = lines.len();
    if group.bits == 4 {
        // Two words of eight codes give the row's bytes of two lines.
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

/// Expands eight 4-bit codes to bytes.
fn spread(word: u32) -> u64 {
    let x = u64::from(word);
    let x = (x | x << 16) & 0x0000_ffff_0000_ffff;
    let x = (x | x << 8) & 0x00ff_00ff_00ff_00ff;
    (x | x << 4) & 0x0f0f_0f0f_0f0f_0f0f
}

/// Rounds a group. Returns its scale and the sum of its codes.
fn round_group(values: &[f32], codes: &mut [i8]) -> (f32, i32) {
    // The bits of non-negative floats have the same order as the floats, and NaN is the largest. Compilers vectorize
    // this maximum.
    let largest = values.iter().fold(0, |max: i32, v| max.max(v.abs().to_bits() as i32));
    let largest = f32::from_bits(largest as u32);
    // Smaller values have no finite inverse. They are negligible in any sum.
    let inverse = if largest < 1e-35 { 0.0 } else { 127.0 / largest };
    let mut sum = 0;
    for (code, value) in codes.iter_mut().zip(values) {
        // Adding 1.5 * 2^23, whose last place is 1, rounds to nearest even and puts the integer into the low bits.
        *code = (value * inverse + 12_582_912.0).to_bits() as i8;
        sum += i32::from(*code);
    }
    (largest / 127.0, sum)
}

#[cfg(test)]
mod tests;
