//! [`Hessian`]: X^T X of a matrix's inputs, accumulated over the calibration tokens; and how far these inputs have
//! drifted from those of the float model.
//!
//! `pipeline.rs` feeds it; `gptq.rs` reads it. Products are f32 over at most [`CHUNK`] tokens, sums between chunks f64.

use faer::{Accum, Mat, MatMut, MatRef, Par, linalg::matmul::matmul};
use rayon::prelude::*;

/// Tokens whose products are summed in f32 before they are added to the f64 sum.
const CHUNK: usize = 512;

/// Columns that one task computes. Only those at or below the diagonal are.
const BLOCK: usize = 128;

/// How much each calibration token counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TokenWeight {
    /// Every token's input is divided by its root mean square first, so that each counts the same. In models with an
    /// attention sink one token's activations are a hundred times larger than all others: unscaled, its one direction
    /// is all that the Hessian sees of the sequence.
    #[default]
    EqualNorm,
    /// Inputs as they are: the Hessian of the plain squared error.
    Plain,
}

/// X^T X of one matrix's inputs, `[cols, cols]`.
pub struct Hessian {
    token_weight: TokenWeight,
    tokens: usize,
    /// The lower triangle in blocks of [`BLOCK`] columns: block `b` is column-major `[cols - b * BLOCK, width]`.
    blocks: Vec<Mat<f64>>,
    /// `(X_float - X)^T X` in blocks of [`BLOCK`] columns `[cols, width]`; empty where there are no float inputs.
    drift: Vec<Mat<f64>>,
    cols: usize,
}

impl Hessian {
    /// No token seen yet.
    pub fn new(cols: usize, token_weight: TokenWeight) -> Hessian {
        let blocks = (0..cols).step_by(BLOCK).map(|start| Mat::zeros(cols - start, BLOCK.min(cols - start))).collect();
        Hessian { token_weight, tokens: 0, blocks, drift: Vec::new(), cols }
    }

    /// Adds the inputs `x`, row-major `[tokens, cols]`.
    ///
    /// Panics when `x` is not whole rows.
    pub fn add(&mut self, x: &[f32]) {
        assert!(x.len().is_multiple_of(self.cols), "Hessian::add: {} values in rows of {}", x.len(), self.cols);
        self.tokens += x.len() / self.cols;
        for chunk in x.chunks(CHUNK * self.cols) {
            match self.token_weight {
                TokenWeight::Plain => self.add_products(chunk),
                TokenWeight::EqualNorm => self.add_products(&self.weighted(chunk, chunk)),
            }
        }
    }

    /// Adds the inputs `x`, and with them those that the float model has for the same tokens; both row-major
    /// `[tokens, cols]`.
    pub fn add_with_float(&mut self, x: &[f32], float: &[f32]) {
        assert_eq!(x.len(), float.len(), "Hessian::add_with_float: as many float inputs as others");
        self.add(x);
        let cols = self.cols;
        if self.drift.is_empty() {
            self.drift = (0..cols).step_by(BLOCK).map(|start| Mat::zeros(cols, BLOCK.min(cols - start))).collect();
        }
        for (chunk, float) in x.chunks(CHUNK * cols).zip(float.chunks(CHUNK * cols)) {
            let drift: Vec<f32> = float.iter().zip(chunk).map(|(float, x)| float - x).collect();
            let (x, drift) = (self.weighted(chunk, chunk), self.weighted(chunk, &drift));
            let x_t = MatRef::from_column_major_slice(&x, cols, x.len() / cols);
            let drift_t = MatRef::from_column_major_slice(&drift, cols, x.len() / cols);
            self.drift.par_iter_mut().enumerate().for_each(|(b, sum)| {
                let right = x_t.subrows(b * BLOCK, sum.ncols()).transpose();
                add_product(sum.as_mut(), drift_t, right);
            });
        }
    }

    /// The rows of `values`, each times what a token with the inputs `x` counts.
    fn weighted(&self, x: &[f32], values: &[f32]) -> Vec<f32> {
        let mut weighted = values.to_vec();
        if self.token_weight == TokenWeight::EqualNorm {
            let rows = weighted.par_chunks_exact_mut(self.cols).zip(x.par_chunks_exact(self.cols));
            rows.for_each(|(row, x)| multiply(row, root_mean_square_inverse(x)));
        }
        weighted
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

    /// Inputs of the matrix.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Tokens seen.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// `2 / tokens * X^T X`, both triangles. All zeros where no token was seen.
    pub fn matrix(&self) -> Mat<f64> {
        let scale = 2.0 / self.tokens.max(1) as f64;
        Mat::from_fn(self.cols, self.cols, |i, j| {
            let (row, col) = (i.max(j), i.min(j));
            let start = col / BLOCK * BLOCK;
            self.blocks[col / BLOCK][(row - start, col - start)] * scale
        })
    }

    /// `2 / tokens * (X_float - X)^T X`: entry `(i, j)` is how input `i` has drifted where input `j` is large. `None`
    /// without float inputs.
    pub fn drift(&self) -> Option<Mat<f64>> {
        let scale = 2.0 / self.tokens.max(1) as f64;
        let entry = |i: usize, j: usize| self.drift[j / BLOCK][(i, j % BLOCK)] * scale;
        (!self.drift.is_empty()).then(|| Mat::from_fn(self.cols, self.cols, entry))
    }
}

/// `sum += left * right`, the product in f32, on one thread.
fn add_product(mut sum: MatMut<'_, f64>, left: MatRef<'_, f32>, right: MatRef<'_, f32>) {
    let (rows, width) = (sum.nrows(), sum.ncols());
    let mut product = vec![0f32; rows * width];
    let mut product = MatMut::from_column_major_slice_mut(&mut product, rows, width);
    matmul(product.as_mut(), Accum::Replace, left, right, 1.0, Par::Seq);
    for c in 0..width {
        for r in 0..rows {
            sum[(r, c)] += f64::from(product[(r, c)]);
        }
    }
}

/// One for a row of zeros.
fn root_mean_square_inverse(row: &[f32]) -> f32 {
    let mean_square = row.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>() / row.len() as f64;
    if mean_square > 0.0 { (1.0 / mean_square.sqrt()) as f32 } else { 1.0 }
}

fn multiply(row: &mut [f32], factor: f32) {
    row.iter_mut().for_each(|v| *v *= factor);
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

    fn check(token_weight: TokenWeight, x: &[f32], expected_from: &[f32]) {
        let mut hessian = Hessian::new(COLS, token_weight);
        // In pieces, as windows come.
        x.chunks(300 * COLS).for_each(|piece| hessian.add(piece));
        let h = hessian.matrix();
        for (i, j) in [(0, 0), (1, 0), (0, 1), (COLS - 1, 3), (130, 129), (129, 130), (COLS - 1, COLS - 1)] {
            let dot = |row: &[f32]| f64::from(row[i]) * f64::from(row[j]);
            let expected = 2.0 / TOKENS as f64 * expected_from.chunks(COLS).map(dot).sum::<f64>();
            assert!((h[(i, j)] - expected).abs() < 1e-5, "({i}, {j}): {} is not {expected}", h[(i, j)]);
        }
    }

    #[test]
    fn is_the_sum_of_products() {
        check(TokenWeight::Plain, &inputs(), &inputs());
    }

    #[test]
    fn equal_norm_takes_the_size_of_a_token_away() {
        let mut large = inputs();
        large[..COLS].iter_mut().for_each(|v| *v *= 1000.0);
        let mut scaled = inputs();
        scaled.chunks_exact_mut(COLS).for_each(|row| multiply(row, root_mean_square_inverse(row)));
        check(TokenWeight::EqualNorm, &large, &scaled);
    }

    #[test]
    fn drift_is_the_product_of_the_difference_with_the_inputs() {
        let x = inputs();
        let float: Vec<f32> = x.iter().enumerate().map(|(i, v)| v + ((i * 31) % 17) as f32 / 100.0).collect();
        let mut hessian = Hessian::new(COLS, TokenWeight::Plain);
        hessian.add_with_float(&x, &float);
        let drift = hessian.drift().unwrap();
        for (i, j) in [(0, 0), (1, 0), (0, 1), (COLS - 1, 3), (130, 129), (5, COLS - 1)] {
            let rows = x.chunks(COLS).zip(float.chunks(COLS));
            let sum: f64 = rows.map(|(x, float)| f64::from(float[i] - x[i]) * f64::from(x[j])).sum();
            let expected = 2.0 / TOKENS as f64 * sum;
            assert!((drift[(i, j)] - expected).abs() < 1e-5, "({i}, {j}): {} is not {expected}", drift[(i, j)]);
        }
    }
}
