//! [`Solver`]: quantizes a matrix on the device, some rows at a time.

use model_format::Weight;

use super::{
    BLOCK, Codes, Columns, ColumnsOut, Errors, RankUpdate, RowDots, Scales,
    arrange::{Arrange, Diagonal, Order, Piece},
};
use crate::{
    Gpu, Result, WeightFormat,
    add::Add,
    gpu::{Buffer, Recorder},
    matrix::Matrix,
};

/// The inputs that all rows of a matrix `[rows, cols]` share. `cols` is a multiple of `group_len`, and `group_len` of [`BLOCK`].
pub struct Problem<'a> {
    /// `[cols]`: the order in which columns are rounded.
    pub perm: Vec<u32>,
    /// `[cols, cols]`: the upper Cholesky factor of the inverse of the damped Hessian, in that order.
    pub factor: Vec<f32>,
    /// `[cols, cols]`: the Hessian. Its diagonal is replaced by `diagonal`.
    pub hessian: &'a Matrix,
    /// `[cols]`: the damped diagonal of the Hessian.
    pub diagonal: Vec<f32>,
    /// `[cols, cols]`: the drift of the inputs to compensate.
    pub drift: Option<&'a Matrix>,
    /// The compensated fraction of the drift.
    pub alpha: f32,
    /// For [`Solver::shifts`]: products `[rows, cols]` of an output error with the inputs, and the compensated fraction.
    pub residual: Option<(&'a Matrix, f32)>,
    /// Columns that share a scale.
    pub group_len: usize,
    /// The largest code.
    pub max_code: u32,
    /// Products of a scale with integers of this many bits must be exact in f16. With 0, only the scale must be.
    pub coarse_bits: u32,
    /// Sweeps of coordinate descent.
    pub sweeps: usize,
}

/// Quantized rows.
pub struct Solution {
    /// `[rows, cols]`, integers.
    pub codes: Vec<f32>,
    /// `[rows, groups, 2]`: scale and zero.
    pub grid: Vec<f32>,
    /// `[rows]`: `d H d` for the error d of each row.
    pub losses: Vec<f32>,
}

/// A problem on the device.
pub struct Solver<'a> {
    cols: usize,
    group_len: usize,
    max_code: u32,
    coarse_bits: u32,
    sweeps: usize,
    perm: Buffer<u32>,
    factor: Matrix,
    /// `[cols, cols]` in the order of `perm`, above the diagonal: later columns compensate the drift of a weight's input by the
    /// weight times these entries.
    correction: Option<Matrix>,
    hessian: &'a Matrix,
    /// The transpose of `alpha` times the drift, for coordinate descent.
    drift: Option<Matrix>,
    residual: Option<Residual<'a>>,
}

/// An output error that does not come from these weights.
struct Residual<'a> {
    /// `[rows, cols]`: its products with the inputs.
    products: &'a Matrix,
    /// The compensated fraction.
    alpha: f32,
    /// The transpose of the factor.
    transposed: Matrix,
    /// `[cols]`: the inverse of `perm`.
    inverse: Buffer<u32>,
}

/// Bytes of a piece of rows.
const PIECE_BYTES: usize = 64 << 20;

/// Rows `[len, cols]` of a matrix in f32, from row `first` on. One slice has all of them.
fn lines(matrix: &Matrix, first: usize, len: usize) -> Buffer<f32> {
    let holds = |slice: &&crate::matrix::Slice| (slice.first_row..slice.first_row + slice.rows).contains(&first);
    let slice = matrix.slices.iter().find(holds).expect("the matrix has this row");
    slice.q_weight.cast().slice((first - slice.first_row) * matrix.cols, len * matrix.cols)
}

/// A matrix `[cols, cols]` of zeros.
fn square(gpu: &Gpu, cols: usize) -> Result<Matrix> {
    Matrix::zeroed(gpu, WeightFormat::F32, cols, cols, gpu.slice_bytes())
}

/// The transpose of a square matrix, times `scale`.
fn transposed(recorder: &mut Recorder, matrix: &Matrix, scale: f32) -> Result<Matrix> {
    let transposed = square(&recorder.gpu().clone(), matrix.cols)?;
    let transpose = Arrange { order: Order::Transposed, perm: None, splits: 1, scale };
    transpose.record(recorder, &Piece::all(matrix), &Piece::all(&transposed));
    Ok(transposed)
}

/// `alpha * triu(D U^T, 1) U` of the drift D in the order `perm` and the factor U (GPTAQ, Li and others, 2025).
fn correction(
    recorder: &mut Recorder,
    drift: &Matrix,
    perm: &Buffer<u32>,
    factor: &Matrix,
    alpha: f32,
) -> Result<Matrix> {
    let cols = factor.cols;
    let gpu = recorder.gpu().clone();
    let plain = |order| Arrange { order, perm: None, splits: 1, scale: 1.0 };
    let transposed = transposed(recorder, factor, 1.0)?;
    let correction = square(&gpu, cols)?;
    let each = (PIECE_BYTES / (4 * cols)).max(BLOCK) / BLOCK * BLOCK;
    for first in (0..cols).step_by(each) {
        let rows = each.min(cols - first);
        let piece = |values: &Buffer<f32>| [Piece { first, rows, cols, stride: cols, values: values.clone() }];
        let (x, y) = (recorder.temporary(rows * cols), recorder.temporary(rows * cols));
        let permuted = Arrange { order: Order::Permuted, perm: Some(perm), splits: 1, scale: alpha };
        permuted.record(recorder, &Piece::all(drift), &piece(&x));
        factor.linear(recorder, &x, rows, &y);
        plain(Order::Upper).record(recorder, &piece(&y), &piece(&x));
        transposed.linear(recorder, &x, rows, &y);
        plain(Order::Plain).record(recorder, &piece(&y), &Piece::all(&correction));
    }
    Ok(correction)
}

impl<'a> Solver<'a> {
    /// Uploads a problem. Errors: out of memory.
    pub fn new(recorder: &mut Recorder, problem: Problem<'a>) -> Result<Solver<'a>> {
        let Problem { perm, factor, hessian, diagonal, group_len, max_code, coarse_bits, sweeps, .. } = problem;
        let Problem { drift, alpha, residual, .. } = problem;
        let cols = perm.len();
        assert!(group_len.is_multiple_of(BLOCK) && cols.is_multiple_of(group_len), "Solver: {cols}, {group_len}");
        assert!(group_len <= 256, "Solver: a slice of a matrix must have whole groups");
        let gpu = recorder.gpu().clone();
        let mut inverse = vec![0; cols];
        perm.iter().zip(0..).for_each(|(&k, place)| inverse[k as usize] = place);
        let perm = gpu.upload(&perm)?;
        let diagonal = gpu.upload(&diagonal)?;
        Piece::all(hessian).iter().for_each(|piece| Diagonal.record(recorder, &diagonal, piece));
        let factor = Matrix::upload(&gpu, &Weight::F32 { shape: vec![cols, cols], data: factor })?;
        let correction = drift.map(|drift| correction(recorder, drift, &perm, &factor, alpha)).transpose()?;
        let drift = match drift.filter(|_| sweeps > 0) {
            Some(drift) => Some(transposed(recorder, drift, alpha)?),
            None => None,
        };
        let residual = match residual {
            Some((products, alpha)) => {
                let (transposed, inverse) = (transposed(recorder, &factor, 1.0)?, gpu.upload(&inverse)?);
                Some(Residual { products, alpha, transposed, inverse })
            }
            None => None,
        };
        Ok(Solver {
            cols,
            group_len,
            max_code,
            coarse_bits,
            sweeps,
            perm,
            factor,
            correction,
            hessian,
            drift,
            residual,
        })
    }

    /// The change `[rows, cols]` of `rows` rows of the weights, from `first` on, that compensates the output error of
    /// [`Problem::residual`]: `alpha * R H^-1`, with R its products. Waits. Panics if the problem has no residual.
    pub async fn shifts(&self, recorder: &mut Recorder, first: usize, rows: usize) -> Result<Vec<f32>> {
        let cols = self.cols;
        let Residual { products, alpha, transposed, inverse } =
            self.residual.as_ref().expect("the problem has a residual");
        let piece = |values: &Buffer<f32>| [Piece { first, rows, cols, stride: cols, values: values.clone() }];
        let permute = |perm, scale| Arrange { order: Order::ColumnsPermuted, perm: Some(perm), splits: 1, scale };
        let (x, y) = (recorder.temporary(rows * cols), recorder.temporary(rows * cols));
        permute(&self.perm, *alpha).record(recorder, &Piece::all(products), &piece(&x));
        // H^-1 = U^T U.
        self.factor.linear(recorder, &x, rows, &y);
        transposed.linear(recorder, &y, rows, &x);
        permute(inverse, 1.0).record(recorder, &piece(&x), &piece(&y));
        recorder.read(&y)?.await
    }

    /// Quantizes rows of `weights` `[rows, cols]`, starting from `grid` `[rows, groups, 2]`, whose scales it refines. Waits.
    pub async fn solve(&self, recorder: &mut Recorder, weights: &[f32], grid: &[f32]) -> Result<Solution> {
        let (cols, group_len, max_code) = (self.cols, self.group_len, self.max_code);
        let rows = weights.len() / cols;
        let weights = recorder.upload(weights);
        let permuted = recorder.temporary(rows * cols);
        let piece = |values: &Buffer<f32>| [Piece { first: 0, rows, cols, stride: cols, values: values.clone() }];
        let permute = Arrange { order: Order::ColumnsPermuted, perm: Some(&self.perm), splits: 1, scale: 1.0 };
        permute.record(recorder, &piece(&weights), &piece(&permuted));
        let grid = recorder.upload(grid);
        let codes = recorder.temporary(rows * cols);
        let errors = recorder.temporary(rows * BLOCK);
        let unrounded = self.correction.as_ref().map(|_| recorder.temporary(rows * BLOCK));
        for start in (0..cols).step_by(BLOCK) {
            let columns = Columns { rows, cols, start, group_len, max_code };
            let factor = lines(&self.factor, start, BLOCK);
            let correction = self.correction.as_ref().map(|correction| lines(correction, start, BLOCK));
            let out = ColumnsOut { codes: &codes, errors: &errors, unrounded: unrounded.as_ref() };
            columns.record(recorder, &permuted, &factor, correction.as_ref(), &self.perm, &grid, &out);
            let first = start + BLOCK;
            if first < cols {
                let update = RankUpdate { rows, cols, first, depth: BLOCK };
                update.record(recorder, &errors, &factor, &permuted);
                if let (Some(correction), Some(unrounded)) = (&correction, &unrounded) {
                    update.record(recorder, unrounded, correction, &permuted);
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

    /// Optimizes the scale of one group in every row, then its codes, and updates all columns of `residual`.
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
        let lines = lines(self.hessian, group * len, len);
        let scales = Scales { rows, cols, group, len, coarse_bits: self.coarse_bits };
        scales.record(recorder, residual, codes, &lines, grid, of_scale);
        RankUpdate { rows, cols, first: 0, depth: len }.record(recorder, of_scale, &lines, residual);
        for offset in (0..len).step_by(BLOCK) {
            let step = Codes { rows, cols, group, len, offset, max_code: self.max_code };
            step.record(recorder, residual, &lines, grid, codes, of_codes);
            let lines = lines.slice(offset * cols, BLOCK * cols);
            RankUpdate { rows, cols, first: 0, depth: BLOCK }.record(recorder, of_codes, &lines, residual);
        }
    }
}
