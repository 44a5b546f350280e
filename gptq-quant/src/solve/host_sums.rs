//! [`HostSums`]: the sums of a [`Hessian`] on the CPU. Products are f32 over at most 512 tokens; sums between these chunks are
//! f64.

use faer::{Accum, Mat, MatMut, MatRef, Par, linalg::matmul::matmul};
use rayon::prelude::*;
use webgpu_kernels::gram::TokenWeights;

use super::hessian::Hessian;

/// Tokens whose products are summed in f32 before they are added to the f64 sum.
const CHUNK: usize = 512;

/// Columns per task. A task of the symmetric sum computes only entries at or below the diagonal.
const BLOCK: usize = 128;

/// Fewest rows per thread in elementwise loops.
const ROWS: usize = 64;

/// Sums of a [`Hessian`] in host memory.
pub struct HostSums {
    weights: TokenWeights,
    tokens: usize,
    /// The lower triangle of X^T X in blocks of [`BLOCK`] columns: block `b` is column-major `[cols - b * BLOCK, width]`.
    blocks: Vec<Mat<f64>>,
    /// `(X_float - X)^T X` in blocks of [`BLOCK`] columns `[cols, width]`. Empty without float inputs.
    drift: Vec<Mat<f64>>,
    cols: usize,
    streams: Option<StreamSums>,
}

/// `(S_float - S)^T X` in blocks of [`BLOCK`] columns `[rows, width]`.
struct StreamSums {
    tokens: usize,
    blocks: Vec<Mat<f64>>,
}

impl HostSums {
    /// All zero. With `with_drift`, every [`HostSums::add`] must get the float model's inputs.
    pub fn new(cols: usize, weights: TokenWeights, with_drift: bool) -> HostSums {
        let blocks = (0..cols).step_by(BLOCK).map(|start| Mat::zeros(cols - start, BLOCK.min(cols - start))).collect();
        let drift = if with_drift { whole_blocks(cols, cols) } else { Vec::new() };
        HostSums { weights, tokens: 0, blocks, drift, cols, streams: None }
    }

    /// Allows [`HostSums::add_streams`] for a matrix of `rows` outputs.
    pub fn expect_streams(&mut self, rows: usize) {
        self.streams = Some(StreamSums { tokens: 0, blocks: whole_blocks(rows, self.cols) });
    }

    /// Adds inputs `x` `[tokens, cols]`, whole windows, with the residual streams that the outputs are added to: of the quantized
    /// and of the float model, both `[tokens, rows]`.
    ///
    /// Panics without [`HostSums::expect_streams`].
    pub fn add_streams(&mut self, x: &[f32], [stream, float]: [&[f32]; 2]) {
        let cols = self.cols;
        let mut sums = self.streams.take().expect("HostSums::add_streams: expected");
        let rows = sums.blocks[0].nrows();
        assert_eq!((stream.len(), float.len()), (x.len() / cols * rows, stream.len()), "HostSums::add_streams: rows");
        let factors = self.factors(sums.tokens, x);
        let weighted = Chunks { values: &multiplied(x, &factors), cols };
        let drift = Chunks { values: &multiplied_difference(float, stream, &factors), cols: rows };
        let blocks = sums.blocks.par_iter_mut().enumerate();
        blocks.for_each(|(b, sum)| add_chunks(sum.as_mut(), [drift, weighted], [0, b * BLOCK]));
        sums.tokens += x.len() / cols;
        self.streams = Some(sums);
    }

    /// Adds the inputs `x`, and the float model's inputs for the same tokens if drift is summed. Both are row-major
    /// `[tokens, cols]`, whole windows.
    ///
    /// Panics if `x` is not whole rows.
    pub fn add(&mut self, x: &[f32], float: Option<&[f32]>) {
        let cols = self.cols;
        assert!(x.len().is_multiple_of(cols), "HostSums::add: {} values in rows of {cols}", x.len());
        assert_eq!(float.is_some(), !self.drift.is_empty(), "HostSums::add: float inputs where drift is summed");
        let factors = self.factors(self.tokens, x);
        self.tokens += x.len() / cols;
        let weighted = Chunks { values: &multiplied(x, &factors), cols };
        let drift = float.map(|float| multiplied_difference(float, x, &factors));
        let drift = Chunks { values: drift.as_deref().unwrap_or(&[]), cols };
        // One sequential task per block, so that sums do not depend on the number of threads. Both sums in one parallel
        // iterator, so that threads synchronize once.
        let products = self.blocks.par_iter_mut().enumerate().map(|(b, sum)| (sum, weighted, [b * BLOCK; 2]));
        let drifts = self.drift.par_iter_mut().enumerate().map(|(b, sum)| (sum, drift, [0, b * BLOCK]));
        let all = drifts.chain(products).with_max_len(1);
        all.for_each(|(sum, left, starts)| add_chunks(sum.as_mut(), [left, weighted], starts));
    }

    /// The square root of each token's weight.
    fn factors(&self, first_token: usize, x: &[f32]) -> Vec<f32> {
        let TokenWeights { equal_norm, window, first } = self.weights;
        let factor = |(t, row): (usize, &[f32])| {
            let factor = if equal_norm { root_mean_square_inverse(row) } else { 1.0 };
            if (first_token + t).is_multiple_of(window) { factor * first.sqrt() } else { factor }
        };
        x.par_chunks_exact(self.cols).enumerate().with_min_len(ROWS).map(factor).collect()
    }

    /// The Hessian: the sums times `2 / tokens`.
    pub fn finish(self) -> Hessian {
        let (cols, scale) = (self.cols, 2.0 / self.tokens.max(1) as f64);
        let products = Mat::from_fn(cols, cols, |i, j| {
            let (row, col) = (i.max(j), i.min(j));
            scale * self.blocks[col / BLOCK][(row - col / BLOCK * BLOCK, col % BLOCK)]
        });
        let joined = |blocks: &[Mat<f64>]| {
            Mat::from_fn(blocks[0].nrows(), cols, |i, j| scale * blocks[j / BLOCK][(i, j % BLOCK)])
        };
        let drift = (!self.drift.is_empty()).then(|| joined(&self.drift));
        let stream_drift = self.streams.map(|streams| joined(&streams.blocks));
        Hessian { products, drift, stream_drift }
    }
}

/// Zero sums `[rows, cols]` in blocks of [`BLOCK`] columns.
fn whole_blocks(rows: usize, cols: usize) -> Vec<Mat<f64>> {
    (0..cols).step_by(BLOCK).map(|start| Mat::zeros(rows, BLOCK.min(cols - start))).collect()
}

/// Rows of `cols` values each, [`CHUNK`] at a time.
#[derive(Clone, Copy)]
struct Chunks<'a> {
    values: &'a [f32],
    cols: usize,
}

/// Each row times its factor.
fn multiplied(rows: &[f32], factors: &[f32]) -> Vec<f32> {
    let cols = rows.len() / factors.len();
    let mut products = vec![0.0; rows.len()];
    let rows = products.par_chunks_exact_mut(cols).zip(rows.par_chunks_exact(cols)).zip(factors).with_min_len(ROWS);
    rows.for_each(|((products, row), factor)| products.iter_mut().zip(row).for_each(|(p, v)| *p = v * factor));
    products
}

/// `a - b`, each row times its factor.
fn multiplied_difference(a: &[f32], b: &[f32], factors: &[f32]) -> Vec<f32> {
    let cols = a.len() / factors.len();
    let mut products = vec![0.0; a.len()];
    let rows = a.par_chunks_exact(cols).zip(b.par_chunks_exact(cols)).zip(factors);
    products.par_chunks_exact_mut(cols).zip(rows).with_min_len(ROWS).for_each(|(products, ((a, b), factor))| {
        products.iter_mut().zip(a.iter().zip(b)).for_each(|(p, (a, b))| *p = (a - b) * factor);
    });
    products
}

/// `sum += left^T right`, with the columns of both from `starts` on. Runs on the calling thread: f32 products over [`CHUNK`]
/// tokens, added in f64.
fn add_chunks(mut sum: MatMut<'_, f64>, [left, right]: [Chunks<'_>; 2], starts: [usize; 2]) {
    let (rows, width) = (sum.nrows(), sum.ncols());
    let mut product = vec![0f32; rows * width];
    let chunks = left.values.chunks(CHUNK * left.cols).zip(right.values.chunks(CHUNK * right.cols));
    for (left_values, right_values) in chunks {
        // Row-major [tokens, cols] is column-major [cols, tokens].
        let transposed = |values, cols| MatRef::from_column_major_slice(values, cols, values.len() / cols);
        let left = transposed(left_values, left.cols).subrows(starts[0], rows);
        let right = transposed(right_values, right.cols).subrows(starts[1], width).transpose();
        let output = MatMut::from_column_major_slice_mut(&mut product, rows, width);
        matmul(output, Accum::Replace, left, right, 1.0, Par::Seq);
        for (column, product) in sum.as_mut().col_iter_mut().zip(product.chunks_exact(rows)) {
            let column = column.try_as_col_major_mut().expect("sums are column-major").as_slice_mut();
            column.iter_mut().zip(product).for_each(|(sum, &product)| *sum += f64::from(product));
        }
    }
}

/// `1 / rms(row)`; 1 for a row of zeros.
fn root_mean_square_inverse(row: &[f32]) -> f32 {
    let mean_square = row.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>() / row.len() as f64;
    if mean_square > 0.0 { (1.0 / mean_square.sqrt()) as f32 } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TokenWeight;

    /// More columns than one block and more tokens than one chunk; neither is a multiple.
    const COLS: usize = BLOCK + 70;
    const TOKENS: usize = CHUNK + 100;

    fn inputs() -> Vec<f32> {
        (0..TOKENS * COLS).map(|i| ((i * 7919) % 1013) as f32 / 506.0 - 1.0).collect()
    }

    fn check(weight: TokenWeight, x: &[f32], factor: impl Fn(usize, &[f32]) -> f64) {
        // In batches of whole windows, as in a run.
        let mut sums = HostSums::new(COLS, weight.in_windows(306), false);
        x.chunks(306 * COLS).for_each(|piece| sums.add(piece, None));
        let h = sums.finish().products;
        for (i, j) in [(0, 0), (1, 0), (0, 1), (COLS - 1, 3), (130, 129), (129, 130), (COLS - 1, COLS - 1)] {
            let term = |(t, row): (usize, &[f32])| factor(t, row) * f64::from(row[i]) * f64::from(row[j]);
            let expected = 2.0 / TOKENS as f64 * x.chunks(COLS).enumerate().map(term).sum::<f64>();
            assert!((h[(i, j)] - expected).abs() < 1e-5, "({i}, {j}): {} is not {expected}", h[(i, j)]);
        }
    }

    fn mean_square(row: &[f32]) -> f64 {
        row.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>() / row.len() as f64
    }

    #[test]
    fn products_are_summed_over_tokens() {
        check(TokenWeight::PLAIN, &inputs(), |_, _| 1.0);
    }

    #[test]
    fn equal_norm_divides_by_the_mean_square() {
        let mut large = inputs();
        large[..COLS].iter_mut().for_each(|v| *v *= 1000.0);
        check(TokenWeight::default(), &large, |_, row| 1.0 / mean_square(row));
    }

    #[test]
    fn first_tokens_of_windows_get_extra_weight() {
        let weight = TokenWeight { equal_norm: false, first_token: 0.05 };
        check(weight, &inputs(), |t, _| if t % 306 == 0 { 1.0 + 0.05 * 306.0 } else { 1.0 });
    }

    #[test]
    fn drift_sums_differences_times_inputs() {
        let x = inputs();
        let float: Vec<f32> = x.iter().enumerate().map(|(i, v)| v + ((i * 31) % 17) as f32 / 100.0).collect();
        let mut sums = HostSums::new(COLS, TokenWeight::PLAIN.in_windows(TOKENS), true);
        sums.add(&x, Some(&float));
        let drift = sums.finish().drift.unwrap();
        for (i, j) in [(0, 0), (1, 0), (0, 1), (COLS - 1, 3), (130, 129), (5, COLS - 1)] {
            let rows = x.chunks(COLS).zip(float.chunks(COLS));
            let sum: f64 = rows.map(|(x, float)| f64::from(float[i] - x[i]) * f64::from(x[j])).sum();
            let expected = 2.0 / TOKENS as f64 * sum;
            assert!((drift[(i, j)] - expected).abs() < 1e-5, "({i}, {j}): {} is not {expected}", drift[(i, j)]);
        }
    }
}
