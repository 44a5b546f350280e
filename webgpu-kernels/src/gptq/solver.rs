//! [`Solver`]: a matrix quantized on the device, some rows at a time.

use model_format::Weight;

use super::{BLOCK, Codes, Columns, ColumnsOut, Errors, RankUpdate, RowDots, Scales};
use crate::{
    Result,
    add::Add,
    gpu::{Buffer, Gpu, Recorder},
    matrix::Matrix,
};

/// What all rows of a matrix `[rows, cols]` have in common. `cols` is a multiple of a group's columns, and these of
/// [`BLOCK`].
pub struct Problem<'a> {
    /// The order in which columns are rounded `[cols]`.
    pub perm: &'a [u32],
    /// The upper factor of the inverse of the Hessian `[cols, cols]`, in that order.
    pub factor: &'a [f32],
    /// What a weight adds to those after it, so that they make good its input's drift `[cols, cols]`, in that order, above
    /// the diagonal.
    pub correction: Option<&'a [f32]>,
    /// The damped Hessian `[cols, cols]`.
    pub hessian: Vec<f32>,
    /// The transpose of the drift that is to be made good `[cols, cols]`.
    pub drift: Option<Vec<f32>>,
    /// Columns that share a scale.
    pub group_len: usize,
    /// The largest code.
    pub max_code: u32,
    /// Bits of multiples with which products of a scale must be exact in f16; 0 where only scales must be.
    pub coarse_bits: u32,
    /// Sweeps of coordinate descent.
    pub sweeps: usize,
}

/// Some rows, solved.
pub struct Solution {
    /// `[rows, cols]`, whole numbers.
    pub codes: Vec<f32>,
    /// `[rows, groups, 2]`: scale and zero.
    pub grid: Vec<f32>,
    /// Of each row, `d H d` of its error d.
    pub losses: Vec<f32>,
}

/// A problem on the device.
pub struct Solver {
    cols: usize,
    group_len: usize,
    max_code: u32,
    coarse_bits: u32,
    sweeps: usize,
    perm: Vec<u32>,
    perm_buffer: Buffer<u32>,
    /// `[cols / BLOCK, BLOCK, BLOCK]`: on and above the diagonal the factor, below it the correction's transpose.
    tiles: Buffer<f32>,
    factor: Lines,
    correction: Option<Lines>,
    hessian_lines: Lines,
    /// `[groups, group_len, group_len]` from the diagonal of the Hessian.
    squares: Buffer<f32>,
    hessian: Matrix,
    drift: Option<Matrix>,
}

/// Lines of a matrix `[cols, cols]`, of which some can be bound.
struct Lines {
    cols: usize,
    /// Lines of each piece.
    each: usize,
    pieces: Vec<Buffer<f32>>,
}

/// Bytes of a piece.
const PIECE_BYTES: usize = 32 << 20;

impl Lines {
    /// `len` is the most lines that will be wanted at a time, from a multiple of it on.
    fn upload(gpu: &Gpu, cols: usize, len: usize, values: &[f32]) -> Result<Lines> {
        let each = (PIECE_BYTES / (4 * cols * len)).max(1) * len;
        let pieces = values.chunks(each * cols).map(|piece| gpu.upload(piece)).collect::<Result<_>>()?;
        Ok(Lines { cols, each, pieces })
    }

    /// `[len, cols]` from line `first` on.
    fn get(&self, first: usize, len: usize) -> Buffer<f32> {
        self.pieces[first / self.each].slice(first % self.each * self.cols, len * self.cols)
    }
}

impl Solver {
    /// Takes a problem to the device. Errors: out of memory.
    pub fn new(gpu: &Gpu, problem: Problem<'_>) -> Result<Solver> {
        let Problem { perm, factor, correction, hessian, drift, group_len, max_code, coarse_bits, sweeps } = problem;
        let cols = perm.len();
        assert!(group_len.is_multiple_of(BLOCK) && cols.is_multiple_of(group_len), "Solver: {cols}, {group_len}");
        let mut tiles = Vec::with_capacity(cols * BLOCK);
        for start in (0..cols).step_by(BLOCK) {
            for (k, j) in (0..BLOCK).flat_map(|k| (0..BLOCK).map(move |j| (k, j))) {
                tiles.push(match correction {
                    _ if j >= k => factor[(start + k) * cols + start + j],
                    Some(correction) => correction[(start + j) * cols + start + k],
                    None => 0.0,
                });
            }
        }
        let mut squares = Vec::with_capacity(cols * group_len);
        for start in (0..cols).step_by(group_len) {
            (start..start + group_len).for_each(|i| {
                squares.extend_from_slice(&hessian[i * cols + start..i * cols + start + group_len]);
            });
        }
        let matrix = |data: Vec<f32>| Matrix::upload(gpu, &Weight::F32 { shape: vec![cols, cols], data });
        Ok(Solver {
            cols,
            group_len,
            max_code,
            coarse_bits,
            sweeps,
            perm: perm.to_vec(),
            perm_buffer: gpu.upload(perm)?,
            tiles: gpu.upload(&tiles)?,
            factor: Lines::upload(gpu, cols, BLOCK, factor)?,
            correction: correction.map(|lines| Lines::upload(gpu, cols, BLOCK, lines)).transpose()?,
            hessian_lines: Lines::upload(gpu, cols, group_len, &hessian)?,
            squares: gpu.upload(&squares)?,
            hessian: matrix(hessian)?,
            drift: drift.map(matrix).transpose()?,
        })
    }

    /// Solves rows of `weights` `[rows, cols]` on `grid` `[rows, groups, 2]`, whose scales are refined. Waits.
    pub async fn solve(&self, recorder: &mut Recorder, weights: &[f32], grid: &[f32]) -> Result<Solution> {
        let (cols, group_len, max_code) = (self.cols, self.group_len, self.max_code);
        let rows = weights.len() / cols;
        let permuted: Vec<f32> =
            weights.chunks(cols).flat_map(|row| self.perm.iter().map(|&k| row[k as usize])).collect();
        let weights = recorder.upload(weights);
        let permuted = recorder.upload(&permuted);
        let grid = recorder.upload(grid);
        let codes = recorder.temporary(rows * cols);
        let errors = recorder.temporary(rows * BLOCK);
        let unrounded = self.correction.as_ref().map(|_| recorder.temporary(rows * BLOCK));
        for start in (0..cols).step_by(BLOCK) {
            let columns = Columns { rows, cols, start, group_len, max_code };
            let tile = self.tiles.slice(start * BLOCK, BLOCK * BLOCK);
            let out = ColumnsOut { codes: &codes, errors: &errors, unrounded: unrounded.as_ref() };
            columns.record(recorder, &permuted, &tile, &self.perm_buffer, &grid, &out);
            let first = start + BLOCK;
            if first < cols {
                let update = RankUpdate { rows, cols, first, depth: BLOCK };
                update.record(recorder, &errors, &self.factor.get(start, BLOCK), &permuted);
                if let (Some(correction), Some(unrounded)) = (&self.correction, &unrounded) {
                    update.record(recorder, unrounded, &correction.get(start, BLOCK), &permuted);
                }
            }
        }
        drop(permuted);

        let difference = recorder.temporary(rows * cols);
        let find_difference = Errors { rows, cols, group_len };
        if self.sweeps > 0 {
            find_difference.record(recorder, &weights, &codes, &grid, &difference);
            let residual = recorder.temporary(rows * cols);
            self.hessian.linear(recorder, &difference, rows, &residual);
            if let Some(drift) = &self.drift {
                drift.linear(recorder, &weights, rows, &difference);
                Add { rows: 1, cols: rows * cols }.record(recorder, &residual, &difference);
            }
            let changes = recorder.temporary(rows * group_len);
            for _ in 0..self.sweeps {
                for group in 0..cols / group_len {
                    self.visit(recorder, rows, group, &residual, &codes, &grid, [&changes, &errors]);
                }
            }
        }

        find_difference.record(recorder, &weights, &codes, &grid, &difference);
        let product = recorder.temporary(rows * cols);
        self.hessian.linear(recorder, &difference, rows, &product);
        let losses = recorder.temporary(rows);
        RowDots { rows, cols }.record(recorder, &difference, &product, &losses);
        let codes = recorder.read(&codes)?.await?;
        let grid = recorder.read(&grid)?.await?;
        let losses = recorder.read(&losses)?.await?;
        Ok(Solution { codes, grid, losses })
    }

    /// The scale of one group in every row, then its codes. Changes of the values go to all columns of `residual`.
    fn visit(
        &self,
        recorder: &mut Recorder,
        rows: usize,
        group: usize,
        residual: &Buffer<f32>,
        codes: &Buffer<f32>,
        grid: &Buffer<f32>,
        [of_scale, of_codes]: [&Buffer<f32>; 2],
    ) {
        let (cols, len) = (self.cols, self.group_len);
        let square = self.squares.slice(group * len * len, len * len);
        let scales = Scales { rows, cols, group, len, coarse_bits: self.coarse_bits };
        scales.record(recorder, residual, codes, &square, grid, of_scale);
        let lines = self.hessian_lines.get(group * len, len);
        RankUpdate { rows, cols, first: 0, depth: len }.record(recorder, of_scale, &lines, residual);
        for offset in (0..len).step_by(BLOCK) {
            let step = Codes { rows, cols, group, len, offset, max_code: self.max_code };
            step.record(recorder, residual, &square, grid, codes, of_codes);
            let lines = lines.slice(offset * cols, BLOCK * cols);
            RankUpdate { rows, cols, first: 0, depth: BLOCK }.record(recorder, of_codes, &lines, residual);
        }
    }
}
