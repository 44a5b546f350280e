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
        for (c, chunk) in x.chunks(CHUNK * cols).enumerate() {
            let factors = self.factors(sums.tokens + c * CHUNK, chunk);
            let weighted = multiplied(chunk.to_vec(), &factors);
            let part = c * CHUNK * rows..c * CHUNK * rows + chunk.len() / cols * rows;
            let drift =
                std::iter::zip(&float[part.clone()], &stream[part]).map(|(float, stream)| float - stream).collect();
            add_left(&mut sums.blocks, &multiplied(drift, &factors), rows, &weighted, cols);
        }
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
        let first_token = self.tokens;
        self.tokens += x.len() / cols;
        for (c, chunk) in x.chunks(CHUNK * cols).enumerate() {
            let factors = self.factors(first_token + c * CHUNK, chunk);
            let weighted = multiplied(chunk.to_vec(), &factors);
            self.add_products(&weighted);
            if let Some(float) = float {
                let float = &float[c * CHUNK * cols..][..chunk.len()];
                let drift = float.iter().zip(chunk).map(|(float, x)| float - x).collect();
                add_left(&mut self.drift, &multiplied(drift, &factors), cols, &weighted, cols);
            }
        }
    }

    /// The root of what each token counts.
    fn factors(&self, first_token: usize, x: &[f32]) -> Vec<f32> {
        let TokenWeights { equal_norm, window, first } = self.weights;
        let factor = |(t, row): (usize, &[f32])| {
            let factor = if equal_norm { root_mean_square_inverse(row) } else { 1.0 };
            if (first_token + t).is_multiple_of(window) { factor * first.sqrt() } else { factor }
        };
        x.par_chunks_exact(self.cols).enumerate().map(factor).collect()
    }

    /// One task per block, each sequential: the sums do not depend on the number of threads.
    fn add_products(&mut self, x: &[f32]) {
        let cols = self.cols;
        // Row-major [tokens, cols] is column-major [cols, tokens].
        let x_t = MatRef::from_column_major_slice(x, cols, x.len() / cols);
        self.blocks.par_iter_mut().enumerate().for_each(|(b, sum)| {
            let (start, rows) = (b * BLOCK, sum.nrows());
            let right = x_t.subrows(start, sum.ncols()).transpose();
            add_product(sum.as_mut(), x_t.subrows(start, rows), right);
        });
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

/// `sums += left^T x`, in blocks of [`BLOCK`] columns `[rows, width]`, of rows `left` `[tokens, rows]` and `x` `[tokens, cols]`.
fn add_left(sums: &mut [Mat<f64>], left: &[f32], rows: usize, x: &[f32], cols: usize) {
    let x_t = MatRef::from_column_major_slice(x, cols, x.len() / cols);
    let left_t = MatRef::from_column_major_slice(left, rows, left.len() / rows);
    sums.par_iter_mut().enumerate().for_each(|(b, sum)| {
        let right = x_t.subrows(b * BLOCK, sum.ncols()).transpose();
        add_product(sum.as_mut(), left_t, right);
    });
}

/// Rows, each times its factor.
fn multiplied(mut rows: Vec<f32>, factors: &[f32]) -> Vec<f32> {
    let cols = rows.len() / factors.len();
    rows.par_chunks_exact_mut(cols).zip(factors).for_each(|(row, factor)| row.iter_mut().for_each(|v| *v *= factor));
    rows
}

/// `sum += left * right`, the product in f32, on one thread.
fn add_product(sum: MatMut<'_, f64>, left: MatRef<'_, f32>, right: MatRef<'_, f32>) {
    let (rows, width) = (sum.nrows(), sum.ncols());
    let mut product = vec![0f32; rows * width];
    matmul(MatMut::from_column_major_slice_mut(&mut product, rows, width), Accum::Replace, left, right, 1.0, Par::Seq);
    for (column, product) in sum.col_iter_mut().zip(product.chunks_exact(rows)) {
        let column = column.try_as_col_major_mut().expect("sums are column-major").as_slice_mut();
        column.iter_mut().zip(product).for_each(|(sum, &product)| *sum += f64::from(product));
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
