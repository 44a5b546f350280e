//! GPTQ of one matrix (Frantar and others, 2022): columns are rounded one after the other, and what each rounding does
//! to the outputs is made good by the columns that are still free.
//!
//! `pipeline.rs` calls [`quantize`] for each matrix of a layer, with the [`Hessian`](crate::Hessian) of its inputs. Rows
//! do not depend on each other, so they are divided among threads in fixed pieces and the result is the same for any
//! number of them.

use std::{
    borrow::Cow,
    time::{Duration, Instant},
};

use faer::{
    Accum, Mat, MatRef, Par,
    linalg::matmul::{
        matmul,
        triangular::{self, BlockStructure},
    },
};
use half::f16;
use model_format::gptq::GptqMatrix;
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, linalg::general_mat_mul, s};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{
    cholesky::{DEGREE, by_rows, inverse_factor, square},
    grid::{Grid, GroupParams, ScaleRounding, ScaleSearch},
    refine::refine,
    report::matrix::relative_errors,
};

/// Rows that one task works on, so that a block of the inverse's factor is read from the cache.
pub(crate) const ROWS: usize = 32;

/// How to quantize a matrix.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Options {
    /// The values that a weight may take.
    pub grid: Grid,
    /// How each group's scale is chosen.
    pub scale_search: ScaleSearch,
    /// Symmetric scales that are searched may be negative, and put the largest weight on the code that one side has more.
    pub signed_scales: bool,
    /// Scales are rounded to f16, as checkpoints hold them, before error feedback, which makes that rounding good too. Otherwise
    /// after it.
    pub scales_first: bool,
    /// Columns are quantized by falling Hessian diagonal: the most used inputs first, while all others can still make
    /// up for them.
    pub act_order: bool,
    /// Scales are fixed beforehand from the weights as they came, in groups of the original order. With act-order this
    /// keeps groups contiguous (`g_idx[k] = k / group_size`), so that reading the matrix costs nothing extra.
    pub static_groups: bool,
    /// Share of the mean diagonal, dead inputs left out, that is added to the Hessian's diagonal.
    pub damp_percent: f64,
    /// Columns between two updates of all remaining columns. Changes speed and rounding errors only.
    pub block_size: usize,
    /// How much of the residual stream's drift from the float model's is made good by the matrices whose outputs are added to
    /// it, as far as their inputs tell of it: 0 not at all.
    pub stream_alpha: f64,
    /// How much of the inputs' drift from the float model's is made good (GPTAQ, Li and others, 2025): 0 for GPTQ, whose
    /// target is the float weights on the drifted inputs; 1 for the float model's outputs.
    pub gptaq_alpha: f64,
    /// Sweeps of coordinate descent over scales and codes afterwards (`refine.rs`).
    pub refine: usize,
    /// Values must be exact in f16, not only scales: for a table that checkpoints store as numbers.
    pub values_in_f16: bool,
    /// Follow gptq.py to the letter, for comparison with its results: scales in full precision, of a group without negative
    /// weights half as large as they should be; a group that begins inside a block takes its scale from before the
    /// block's compensation; dead inputs count as 1 in the mean diagonal.
    pub gptq_py: bool,
}

impl Options {
    /// What is best on this grid.
    pub fn new(grid: Grid) -> Options {
        Options {
            grid,
            scale_search: ScaleSearch::default(),
            signed_scales: true,
            scales_first: true,
            act_order: true,
            static_groups: true,
            damp_percent: 0.01,
            block_size: 128,
            stream_alpha: 0.0,
            gptaq_alpha: 0.0,
            refine: 0,
            values_in_f16: false,
            gptq_py: false,
        }
    }
}

/// How a matrix came to its codes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub enum Method {
    /// GPTQ, with this share of the mean diagonal as damping: more than was asked for where the Hessian needed it.
    Gptq {
        /// The share.
        damp_percent: f64,
    },
    /// Round-to-nearest, because no damping made the Hessian positive definite.
    RoundToNearest,
}

/// A quantized matrix.
#[derive(Debug, Clone, PartialEq)]
pub struct Quantized {
    /// The grid that `codes` belong to.
    pub grid: Grid,
    /// `[rows, cols]`.
    pub codes: Array2<u8>,
    /// `[rows, groups]`, exact in f16 unless gptq.py is followed.
    pub scales: Array2<f32>,
    /// `[rows, groups]`.
    pub zeros: Array2<u8>,
    /// `[cols]`, the group of each input.
    pub g_idx: Vec<u32>,
    /// `tr(D H D^T)` of the error D with the damped Hessian H: the squared error of the outputs on the calibration
    /// tokens. Twice gptq.py's sum of losses. NaN after round-to-nearest.
    pub loss: f64,
    /// How the codes were found.
    pub method: Method,
}

impl Quantized {
    /// The values `[rows, cols]`.
    pub fn dequantize(&self) -> Array2<f32> {
        let mut values = Array2::zeros(self.codes.dim());
        values.axis_iter_mut(Axis(0)).into_par_iter().enumerate().for_each(|(row, mut values)| {
            values.iter_mut().enumerate().for_each(|(col, value)| *value = self.value((row, col)));
        });
        values
    }

    /// The values of a row.
    pub(crate) fn row(&self, row: usize) -> Vec<f32> {
        (0..self.codes.ncols()).map(|col| self.value((row, col))).collect()
    }

    /// The values of some rows.
    pub(crate) fn rows(&self, rows: &[usize]) -> Array2<f32> {
        Array2::from_shape_fn((rows.len(), self.codes.ncols()), |(row, col)| self.value((rows[row], col)))
    }

    /// Makes the scales such as checkpoints hold, where that was left for the end.
    pub(crate) fn round_scales(&mut self, options: &Options) {
        if !options.scales_first && !options.gptq_py {
            let round = |scale: f32| self.grid.round_scale(f64::from(scale), options.values_in_f16) as f32;
            self.scales.mapv_inplace(round);
        }
    }

    fn value(&self, (row, col): (usize, usize)) -> f32 {
        let group = self.g_idx[col] as usize;
        let code = f32::from(self.codes[(row, col)]) - f32::from(self.zeros[(row, group)]);
        code * self.scales[(row, group)]
    }

    /// `tr(D H D^T) / tr(W H W^T)`: the squared error of the outputs on the calibration tokens, as a share of their own
    /// square. Zero where the outputs are.
    pub fn relative_error(&self, weights: ArrayView2<'_, f32>, hessian: &Mat<f64>) -> f64 {
        let [error] = relative_errors(weights, [&self.dequantize()], hessian);
        error
    }

    /// The rows `start .. start + rows` as a matrix of a GPTQ checkpoint.
    pub fn rows_to_checkpoint(&self, start: usize, rows: usize) -> GptqMatrix {
        let range = s![start..start + rows, ..];
        GptqMatrix {
            rows,
            cols: self.codes.ncols(),
            codes: self.codes.slice(range).iter().copied().collect(),
            scales: self.scales.slice(range).iter().map(|&s| f16::from_f32(s).to_f32()).collect(),
            zeros: self.zeros.slice(range).iter().copied().collect(),
            g_idx: self.g_idx.clone(),
        }
    }
}

/// Quantizes `weights` `[rows, cols]` so that the outputs for the inputs behind `hessian` `[cols, cols]` change least.
///
/// `drift` `[cols, cols]` is [`Hessian::drift`](crate::Hessian::drift), where it is to be corrected. Where the Hessian is
/// not positive definite the damping grows tenfold, twice; then the matrix is rounded to nearest. Inputs that were always
/// zero get weight zero.
pub fn quantize(
    weights: ArrayView2<'_, f32>,
    hessian: &Mat<f64>,
    drift: Option<&Mat<f64>>,
    options: &Options,
) -> Quantized {
    quantize_timed(weights, hessian, [drift, None], options, &mut Duration::default())
}

/// The same; to `factoring` goes the time until the factors are there.
pub(crate) fn quantize_timed(
    weights: ArrayView2<'_, f32>,
    hessian: &Mat<f64>,
    [drift, stream_drift]: [Option<&Mat<f64>>; 2],
    options: &Options,
    factoring: &mut Duration,
) -> Quantized {
    let begun = Instant::now();
    let cols = weights.ncols();
    let prepared = match Prepared::new(weights, hessian, options) {
        Ok(prepared) => prepared,
        Err(rounded) => return *rounded,
    };
    let Prepared { dead, hessian, perm, factor, damp_percent, damp, importance } = prepared;
    let hessian = hessian.as_ref();
    let correction = drift
        .filter(|_| options.gptaq_alpha != 0.0)
        .map(|drift| correction(drift.as_ref(), &perm, &factor, options.gptaq_alpha));
    let shifted = stream_drift
        .filter(|_| options.stream_alpha != 0.0)
        .map(|drift| &weights + &shifts(drift.as_ref(), &perm, &factor, options.stream_alpha));
    let weights = shifted.as_ref().map_or(weights, |shifted| shifted.view());
    *factoring = begun.elapsed();

    let permuted_importance: Vec<f32> = perm.iter().map(|&k| importance[k]).collect();
    let group_len = options.grid.group_len(cols);
    let groups = options.grid.groups(cols);
    // gptq.py looks at a whole row before it clears dead inputs.
    let whole_row = options.grid.group_size.is_none();
    let fixed_groups = options.static_groups || whole_row;

    let mut codes = Array2::<u8>::zeros(weights.dim());
    let mut scales = Array2::<f32>::zeros((weights.nrows(), groups));
    let mut zeros = Array2::<u8>::zeros((weights.nrows(), groups));
    let pieces = weights.axis_chunks_iter(Axis(0), ROWS).into_par_iter();
    let pieces = pieces.zip(codes.axis_chunks_iter_mut(Axis(0), ROWS));
    let pieces = pieces.zip(scales.axis_chunks_iter_mut(Axis(0), ROWS));
    let pieces = pieces.zip(zeros.axis_chunks_iter_mut(Axis(0), ROWS));
    let losses: Vec<f64> = pieces
        .map(|(((weights, mut codes), mut scales), mut zeros)| {
            let mut params = Array2::from_elem(scales.dim(), GroupParams { scale: 1.0, zero: 0.0 });
            if fixed_groups {
                for (row, mut params) in weights.rows().into_iter().zip(params.rows_mut()) {
                    let clear = !(options.gptq_py && whole_row);
                    let weight = |(&w, &dead): (&f32, &bool)| if dead && clear { 0.0 } else { f64::from(w) };
                    let row: Vec<f64> = row.iter().zip(&dead).map(weight).collect();
                    for (group, params) in params.iter_mut().enumerate() {
                        let range = group * group_len..((group + 1) * group_len).min(cols);
                        *params = find_params(options, &row[range.clone()], &importance[range]);
                    }
                }
            }
            let mut permuted = Array2::from_shape_fn(weights.dim(), |(row, col)| {
                let k = perm[col];
                if dead[k] { 0.0 } else { f64::from(weights[(row, k)]) }
            });
            let piece = Piece {
                options,
                perm: &perm,
                importance: &permuted_importance,
                factor: &factor,
                correction: correction.as_ref(),
                fixed_groups,
            };
            let loss = piece.run(permuted.view_mut(), codes.view_mut(), params.view_mut());
            ndarray::Zip::from(&mut scales).and(&mut zeros).and(&params).for_each(|scale, zero, params| {
                *scale = params.scale as f32;
                *zero = params.zero as u8;
            });
            loss
        })
        .collect();

    let mut g_idx = vec![0; cols];
    for (col, &k) in perm.iter().enumerate() {
        g_idx[k] = (if fixed_groups { k } else { col } / group_len) as u32;
    }
    let method = Method::Gptq { damp_percent };
    let mut quantized =
        Quantized { grid: options.grid, codes, scales, zeros, g_idx, loss: losses.iter().sum(), method };
    if options.refine > 0 {
        drop((factor, correction));
        let mut alive = weights.to_owned();
        (0..cols).filter(|&k| dead[k]).for_each(|k| alive.column_mut(k).fill(0.0));
        refine(&mut quantized, alive.view(), hessian, drift, damp, options);
    }
    quantized.round_scales(options);
    quantized
}

/// What a matrix is solved with.
pub(crate) struct Prepared<'a> {
    /// Inputs that were always zero.
    pub(crate) dead: Vec<bool>,
    /// The Hessian, with 1 on the diagonal for those.
    pub(crate) hessian: Cow<'a, Mat<f64>>,
    /// The order of columns.
    pub(crate) perm: Vec<usize>,
    /// The upper factor of the inverse of the damped Hessian, in that order.
    pub(crate) factor: Array2<f64>,
    pub(crate) damp_percent: f64,
    /// What is added to the diagonal.
    pub(crate) damp: f64,
    /// Of each input.
    pub(crate) importance: Vec<f32>,
}

impl<'a> Prepared<'a> {
    /// Where the Hessian does not help, the matrix rounded to nearest.
    pub(crate) fn new(
        weights: ArrayView2<'_, f32>,
        hessian: &'a Mat<f64>,
        options: &Options,
    ) -> Result<Prepared<'a>, Box<Quantized>> {
        let cols = weights.ncols();
        assert_eq!((hessian.nrows(), hessian.ncols()), (cols, cols), "quantize: Hessian of {cols} inputs");
        let dead: Vec<bool> = (0..cols).map(|i| hessian[(i, i)] == 0.0).collect();
        let diagonal: Vec<f64> = (0..cols).map(|i| if dead[i] { 1.0 } else { hessian[(i, i)] }).collect();
        let mean_diagonal = mean_diagonal(&diagonal, &dead, options);
        if dead.iter().all(|&dead| dead) || !mean_diagonal.is_finite() {
            return Err(Box::new(round_to_nearest(weights, None, options)));
        }

        let mut perm: Vec<usize> = (0..cols).collect();
        if options.act_order {
            perm.sort_by(|&a, &b| diagonal[b].total_cmp(&diagonal[a]));
        }
        let mut hessian = Cow::Borrowed(hessian);
        if dead.contains(&true) {
            let alive = hessian.to_mut();
            (0..cols).filter(|&i| dead[i]).for_each(|i| alive[(i, i)] = 1.0);
        }
        let attempts = [1.0, 10.0, 100.0].map(|factor| options.damp_percent * factor);
        let factored = attempts.into_iter().find_map(|damp_percent| {
            let factor = inverse_factor(hessian.as_ref().as_ref(), &perm, damp_percent * mean_diagonal)?;
            Some((factor, damp_percent))
        });
        let Some((factor, damp_percent)) = factored else {
            return Err(Box::new(round_to_nearest(weights, Some(&diagonal), options)));
        };
        let importance = diagonal.iter().zip(&dead).map(|(&d, &dead)| if dead { 0.0 } else { d as f32 }).collect();
        Ok(Prepared { dead, hessian, perm, factor, damp_percent, damp: damp_percent * mean_diagonal, importance })
    }
}

/// The mean diagonal that damping is a share of. The 1 that stands in for a dead input says nothing about the others: where
/// activations are small it would be most of the mean. gptq.py counts it.
fn mean_diagonal(diagonal: &[f64], dead: &[bool], options: &Options) -> f64 {
    let counted = diagonal.iter().zip(dead).filter(|(_, dead)| !**dead || options.gptq_py);
    let (sum, count) = counted.fold((0.0, 0usize), |(sum, count), (value, _)| (sum + value, count + 1));
    sum / count as f64
}

/// `alpha * triu(D U^T, 1) U` with D the drift in the order `perm` and U the `factor` (GPTAQ's equation for P).
fn correction(drift: MatRef<'_, f64>, perm: &[usize], factor: &Array2<f64>, alpha: f64) -> Array2<f64> {
    use BlockStructure::{Rectangular, StrictTriangularUpper, TriangularLower, TriangularUpper};
    let (n, par) = (perm.len(), Par::rayon(DEGREE));
    let drift = square(n, |i, j| drift[(perm[i], perm[j])]);
    // Its memory as columns is its transpose.
    let transposed = MatRef::from_column_major_slice(factor.as_slice().expect("rows are contiguous"), n, n);
    let factor = transposed.transpose();
    // Only what lies above the diagonal is computed, and no zeros are multiplied.
    let mut product = Mat::zeros(n, n);
    let (drift, upper, lower) = (drift.as_ref(), TriangularUpper, TriangularLower);
    let (product_of, replace) = (StrictTriangularUpper, Accum::Replace);
    triangular::matmul(product.as_mut(), product_of, replace, drift, Rectangular, transposed, lower, alpha, par);
    let mut correction = Mat::zeros(n, n);
    triangular::matmul(correction.as_mut(), product_of, replace, product.as_ref(), product_of, factor, upper, 1.0, par);
    by_rows(n, n, |i, j| correction[(i, j)])
}

/// `alpha * R H^-1` `[rows, cols]`, with R the drift of the residual stream and `U^T U = H^-1` of the `factor` U: by how much
/// weights are to be others, so that their outputs make good what R tells of. Errors of rounding in what GPTQ then keeps to
/// are made good as ever, and the objective is that of the shifted weights: a whole square is completed.
fn shifts(drift: MatRef<'_, f64>, perm: &[usize], factor: &Array2<f64>, alpha: f64) -> Array2<f32> {
    let (rows, n) = (drift.nrows(), perm.len());
    let permuted = Mat::from_fn(rows, n, |i, j| drift[(i, perm[j])]);
    let factor = Mat::from_fn(n, n, |i, j| factor[(i, j)]);
    let (mut half, mut whole) = (Mat::zeros(rows, n), Mat::zeros(rows, n));
    matmul(half.as_mut(), Accum::Replace, permuted.as_ref(), factor.transpose(), alpha, Par::rayon(DEGREE));
    matmul(whole.as_mut(), Accum::Replace, half.as_ref(), factor.as_ref(), 1.0, Par::rayon(DEGREE));
    let mut shifts = Array2::zeros((rows, n));
    perm.iter().enumerate().for_each(|(j, &k)| (0..rows).for_each(|i| shifts[(i, k)] = whole[(i, j)] as f32));
    shifts
}

/// Each weight to the nearest value, scales chosen for the weights alone or, with `importance`, for their inputs too.
pub fn round_to_nearest(weights: ArrayView2<'_, f32>, importance: Option<&[f64]>, options: &Options) -> Quantized {
    let (rows, cols) = weights.dim();
    let (group_len, groups) = (options.grid.group_len(cols), options.grid.groups(cols));
    let importance: Vec<f32> = importance.map_or(vec![1.0; cols], |i| i.iter().map(|&v| v as f32).collect());
    let mut codes = Array2::<u8>::zeros((rows, cols));
    let mut scales = Array2::<f32>::zeros((rows, groups));
    let mut zeros = Array2::<u8>::zeros((rows, groups));
    let rows = weights.axis_iter(Axis(0)).into_par_iter().zip(codes.axis_iter_mut(Axis(0)));
    let rows = rows.zip(scales.axis_iter_mut(Axis(0))).zip(zeros.axis_iter_mut(Axis(0)));
    rows.for_each(|(((weights, mut codes), mut scales), mut zeros)| {
        let weights: Vec<f64> = weights.iter().map(|&w| f64::from(w)).collect();
        for group in 0..groups {
            let range = group * group_len..((group + 1) * group_len).min(cols);
            let params = find_params(options, &weights[range.clone()], &importance[range.clone()]);
            scales[group] = params.scale as f32;
            zeros[group] = params.zero as u8;
            for col in range {
                codes[col] = options.grid.code(weights[col], params);
            }
        }
    });
    let g_idx = (0..cols).map(|k| (k / group_len) as u32).collect();
    Quantized { grid: options.grid, codes, scales, zeros, g_idx, loss: f64::NAN, method: Method::RoundToNearest }
}

pub(crate) fn find_params(options: &Options, weights: &[f64], importance: &[f32]) -> GroupParams {
    let grid = options.grid;
    let rounding = match (options.scales_first, options.values_in_f16) {
        (false, _) => ScaleRounding::Later,
        (true, false) => ScaleRounding::F16,
        (true, true) => ScaleRounding::CoarseF16,
    };
    let of_range = |mse: bool| {
        let params = grid.range_params(weights, mse, options.gptq_py);
        if options.gptq_py { params } else { grid.storable(params, rounding) }
    };
    match options.scale_search {
        ScaleSearch::Range => of_range(false),
        ScaleSearch::Mse => of_range(true),
        ScaleSearch::Hessian => {
            let weights: Vec<f32> = weights.iter().map(|&w| w as f32).collect();
            grid.search_params(&weights, importance, options.signed_scales, rounding)
        }
    }
}

/// What the rows of a matrix have in common while they are quantized. All but `perm` is in permuted order.
struct Piece<'a> {
    options: &'a Options,
    perm: &'a [usize],
    importance: &'a [f32],
    factor: &'a Array2<f64>,
    /// What a weight adds to those after it, so that they make good its input's drift. Strictly upper triangular.
    correction: Option<&'a Array2<f64>>,
    fixed_groups: bool,
}

impl Piece<'_> {
    /// Quantizes `weights` `[rows, cols]` (permuted) into `codes` (original order); finds the `params` `[rows, groups]`
    /// that are not fixed. Returns the loss.
    fn run(
        &self,
        mut weights: ArrayViewMut2<'_, f64>,
        mut codes: ArrayViewMut2<'_, u8>,
        mut params: ArrayViewMut2<'_, GroupParams>,
    ) -> f64 {
        let (rows, cols) = weights.dim();
        let Options { grid, block_size, .. } = *self.options;
        let group_len = grid.group_len(cols);
        let mut loss = 0.0;
        for start in (0..cols).step_by(block_size) {
            let end = (start + block_size).min(cols);
            let mut errors = Array2::<f64>::zeros((rows, end - start));
            let mut unrounded = Array2::<f64>::zeros((rows, end - start));
            for row in 0..rows {
                let mut weights = weights.row_mut(row);
                let weights = weights.as_slice_mut().expect("rows are contiguous");
                let before_block = self.options.gptq_py.then(|| weights[start..].to_vec());
                for col in start..end {
                    let k = self.perm[col];
                    let group = if self.fixed_groups { k } else { col } / group_len;
                    if !self.fixed_groups && col % group_len == 0 {
                        let range = col..(col + group_len).min(cols);
                        let of_group = match &before_block {
                            Some(before) => &before[range.start - start..range.end - start],
                            None => &weights[range.clone()],
                        };
                        params[(row, group)] = find_params(self.options, of_group, &self.importance[range]);
                    }
                    let code = grid.code(weights[col], params[(row, group)]);
                    codes[(row, k)] = code;
                    let factor = self.factor.row(col);
                    let factor = factor.as_slice().expect("rows are contiguous");
                    let error = (weights[col] - grid.value(code, params[(row, group)])) / factor[col];
                    loss += error * error;
                    errors[(row, col - start)] = error;
                    for (w, f) in weights[col + 1..end].iter_mut().zip(&factor[col + 1..end]) {
                        *w -= error * f;
                    }
                    if let Some(correction) = self.correction {
                        let (weight, correction) = (weights[col], correction.row(col));
                        let correction = correction.as_slice().expect("rows are contiguous");
                        unrounded[(row, col - start)] = weight;
                        for (w, c) in weights[col + 1..end].iter_mut().zip(&correction[col + 1..end]) {
                            *w += weight * c;
                        }
                    }
                }
            }
            let update = self.factor.slice(s![start..end, end..]);
            general_mat_mul(-1.0, &errors, &update, 1.0, &mut weights.slice_mut(s![.., end..]));
            if let Some(correction) = self.correction {
                let update = correction.slice(s![start..end, end..]);
                general_mat_mul(1.0, &unrounded, &update, 1.0, &mut weights.slice_mut(s![.., end..]));
            }
        }
        loss
    }
}
