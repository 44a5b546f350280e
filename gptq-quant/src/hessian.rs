//! [`Hessian`]: X^T X of a matrix's inputs over the calibration tokens; and how far these inputs have drifted from those
//! of the float model.
//!
//! `pipeline.rs` has it made by `calibrate.rs`; `gptq.rs` reads it. [`HostSums`] adds it up on the CPU: products are f32
//! over at most [`CHUNK`] tokens, sums between chunks f64.

use faer::{Accum, Mat, MatMut, MatRef, Par, linalg::matmul::matmul};
use infer_core::ops::TokenWeights;
use rayon::prelude::*;
use serde::Serialize;

/// Tokens whose products are summed in f32 before they are added to the f64 sum.
const CHUNK: usize = 512;

/// Columns that one task computes. Only those at or below the diagonal are.
const BLOCK: usize = 128;

/// Rows that are worth a thread's while, where little is done with each.
const ROWS: usize = 64;

/// How much each calibration token counts.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct TokenWeight {
    /// Every token's input is divided by its root mean square first, so that each counts the same. In models with an
    /// attention sink one token's activations are a hundred times larger than all others: unscaled, its one direction
    /// is all that the Hessian sees of the sequence.
    pub equal_norm: bool,
    /// How much the first token of a window counts beyond the others, as a share of all tokens of the window. It is where
    /// most heads look when they look at nothing, and one token in thousands.
    pub first_token: f64,
}

impl TokenWeight {
    /// Every token counts by the square of its activations: the plain squared error.
    pub const PLAIN: TokenWeight = TokenWeight { equal_norm: false, first_token: 0.0 };

    /// As the operations take it, for windows of `seq_len` tokens.
    pub fn in_windows(self, seq_len: usize) -> TokenWeights {
        let first = 1.0 + self.first_token * seq_len as f64;
        TokenWeights { equal_norm: self.equal_norm, window: seq_len, first: first as f32 }
    }
}

impl Default for TokenWeight {
    fn default() -> TokenWeight {
        TokenWeight { equal_norm: true, first_token: 0.0 }
    }
}

/// What a matrix is quantized by.
pub struct Hessian {
    /// `2 / tokens * X^T X` `[cols, cols]`, both triangles. All zeros where no token was seen.
    pub products: Mat<f64>,
    /// `2 / tokens * (X_float - X)^T X`: entry `(i, j)` is how input `i` has drifted where input `j` is large. `None`
    /// without float inputs, and where a device keeps it.
    pub drift: Option<Mat<f64>>,
    /// `2 / tokens * (S_float - S)^T X` `[rows, cols]`, where S is what the matrix's outputs are added to: how the residual
    /// stream has drifted, as far as the inputs tell. `None` where nobody asked, and where a device keeps it.
    pub stream_drift: Option<Mat<f64>>,
}

impl Hessian {
    /// Of no token.
    pub fn empty(cols: usize) -> Hessian {
        Hessian { products: Mat::zeros(cols, cols), drift: None, stream_drift: None }
    }
}

/// Sums that the CPU adds up.
pub struct HostSums {
    weights: TokenWeights,
    tokens: usize,
    /// The lower triangle in blocks of [`BLOCK`] columns: block `b` is column-major `[cols - b * BLOCK, width]`.
    blocks: Vec<Mat<f64>>,
    /// `(X_float - X)^T X` in blocks of [`BLOCK`] columns `[cols, width]`; empty where there are no float inputs.
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
    /// No token seen yet. `with_drift`: the float model's inputs will come too.
    pub fn new(cols: usize, weights: TokenWeights, with_drift: bool) -> HostSums {
        let blocks = (0..cols).step_by(BLOCK).map(|start| Mat::zeros(cols - start, BLOCK.min(cols - start))).collect();
        let drift = if with_drift { whole_blocks(cols, cols) } else { Vec::new() };
        HostSums { weights, tokens: 0, blocks, drift, cols, streams: None }
    }

    /// Sums also how what `rows` outputs are added to has drifted.
    pub fn expect_streams(&mut self, rows: usize) {
        self.streams = Some(StreamSums { tokens: 0, blocks: whole_blocks(rows, self.cols) });
    }

    /// Adds inputs `x` `[tokens, cols]` with what the outputs will be added to, in the model quantized so far and in the float
    /// one, both `[tokens, rows]`; whole windows.
    ///
    /// Panics when nobody expects it.
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

    /// Adds the inputs `x`, and with them those that the float model has for the same tokens; both row-major
    /// `[tokens, cols]`, whole windows.
    ///
    /// Panics when `x` is not whole rows.
    pub fn add(&mut self, x: &[f32], float: Option<&[f32]>) {
        let cols = self.cols;
        assert!(x.len().is_multiple_of(cols), "HostSums::add: {} values in rows of {cols}", x.len());
        assert_eq!(float.is_some(), !self.drift.is_empty(), "HostSums::add: float inputs where drift is summed");
        let factors = self.factors(self.tokens, x);
        self.tokens += x.len() / cols;
        let weighted = Chunks { values: &multiplied(x, &factors), cols };
        let drift = float.map(|float| multiplied_difference(float, x, &factors));
        let drift = Chunks { values: drift.as_deref().unwrap_or(&[]), cols };
        // One task per block of either sum, each sequential: the sums do not depend on the number of threads. All of them at
        // once, so that threads wait for each other once.
        let products = self.blocks.par_iter_mut().enumerate().map(|(b, sum)| (sum, weighted, [b * BLOCK; 2]));
        let drifts = self.drift.par_iter_mut().enumerate().map(|(b, sum)| (sum, drift, [0, b * BLOCK]));
        let all = drifts.chain(products).with_max_len(1);
        all.for_each(|(sum, left, starts)| add_chunks(sum.as_mut(), [left, weighted], starts));
    }

    /// The root of what each token counts.
    fn factors(&self, first_token: usize, x: &[f32]) -> Vec<f32> {
        let TokenWeights { equal_norm, window, first } = self.weights;
        let factor = |(t, row): (usize, &[f32])| {
            let factor = if equal_norm { root_mean_square_inverse(row) } else { 1.0 };
            if (first_token + t).is_multiple_of(window) { factor * first.sqrt() } else { factor }
        };
        x.par_chunks_exact(self.cols).enumerate().with_min_len(ROWS).map(factor).collect()
    }

    /// What they come to.
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

/// Sums `[rows, cols]` in blocks of [`BLOCK`] columns, all zero.
fn whole_blocks(rows: usize, cols: usize) -> Vec<Mat<f64>> {
    (0..cols).step_by(BLOCK).map(|start| Mat::zeros(rows, BLOCK.min(cols - start))).collect()
}

/// Rows of `cols` values each, [`CHUNK`] at a time.
#[derive(Clone, Copy)]
struct Chunks<'a> {
    values: &'a [f32],
    cols: usize,
}

/// Rows, each times its factor.
fn multiplied(rows: &[f32], factors: &[f32]) -> Vec<f32> {
    let cols = rows.len() / factors.len();
    let mut products = vec![0.0; rows.len()];
    let rows = products.par_chunks_exact_mut(cols).zip(rows.par_chunks_exact(cols)).zip(factors).with_min_len(ROWS);
    rows.for_each(|((products, row), factor)| products.iter_mut().zip(row).for_each(|(p, v)| *p = v * factor));
    products
}

/// Rows of `a - b`, each times its factor.
fn multiplied_difference(a: &[f32], b: &[f32], factors: &[f32]) -> Vec<f32> {
    let cols = a.len() / factors.len();
    let mut products = vec![0.0; a.len()];
    let rows = a.par_chunks_exact(cols).zip(b.par_chunks_exact(cols)).zip(factors);
    products.par_chunks_exact_mut(cols).zip(rows).with_min_len(ROWS).for_each(|(products, ((a, b), factor))| {
        products.iter_mut().zip(a.iter().zip(b)).for_each(|(p, (a, b))| *p = (a - b) * factor);
    });
    products
}

/// `sum += left^T right` of the columns from `starts` on, on one thread: products in f32 over [`CHUNK`] tokens.
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

/// One for a row of zeros.
fn root_mean_square_inverse(row: &[f32]) -> f32 {
    let mean_square = row.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>() / row.len() as f64;
    if mean_square > 0.0 { (1.0 / mean_square.sqrt()) as f32 } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// More columns than one block, more tokens than one chunk, neither a multiple.
    const COLS: usize = BLOCK + 70;
    const TOKENS: usize = CHUNK + 100;

    fn inputs() -> Vec<f32> {
        (0..TOKENS * COLS).map(|i| ((i * 7919) % 1013) as f32 / 506.0 - 1.0).collect()
    }

    fn check(weight: TokenWeight, x: &[f32], factor: impl Fn(usize, &[f32]) -> f64) {
        // In pieces of whole windows, as they come.
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
    fn is_the_sum_of_products() {
        check(TokenWeight::PLAIN, &inputs(), |_, _| 1.0);
    }

    #[test]
    fn equal_norm_takes_the_size_of_a_token_away() {
        let mut large = inputs();
        large[..COLS].iter_mut().for_each(|v| *v *= 1000.0);
        check(TokenWeight::default(), &large, |_, row| 1.0 / mean_square(row));
    }

    #[test]
    fn first_tokens_of_windows_count_more() {
        let weight = TokenWeight { equal_norm: false, first_token: 0.05 };
        check(weight, &inputs(), |t, _| if t % 306 == 0 { 1.0 + 0.05 * 306.0 } else { 1.0 });
    }

    #[test]
    fn drift_is_the_product_of_the_difference_with_the_inputs() {
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
