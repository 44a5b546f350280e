//! GPTQ of one matrix (Frantar and others, 2022): rounds one column after another. Remaining columns compensate the output
//! error of each rounding.
//!
//! The walk calls it for each matrix of a layer, with the [`Hessian`](crate::Hessian) of its inputs. Rows are independent.
//! They are divided among threads in fixed pieces, so the result does not depend on the number of threads.

use std::time::{Duration, Instant};

use faer::Mat;
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, linalg::general_mat_mul, s};
use rayon::prelude::*;

use super::{
    dialect::Dialect,
    grid::GroupParams,
    nearest::find_params,
    prepared::Prepared,
    refine::{ROWS, refine},
};

pub use super::{
    nearest::round_to_nearest,
    options::Options,
    quantized::{Method, Quantized, Solved},
};

/// Quantizes `weights` `[rows, cols]`, minimizing the output error on the inputs summed in `hessian` `[cols, cols]`.
///
/// `drift` `[cols, cols]` is [`Hessian::drift`](crate::Hessian::drift), used if [`Options::gptaq_alpha`] is not 0. If the Hessian
/// is not positive definite, the damping grows tenfold, twice; then the matrix is rounded to nearest. Weights of inputs that
/// were always zero become zero.
pub fn quantize(
    weights: ArrayView2<'_, f32>,
    hessian: &Mat<f64>,
    drift: Option<&Mat<f64>>,
    options: &Options,
) -> Quantized {
    solve(weights, hessian, [drift, None], options, Dialect::Own).quantized
}

/// [`quantize`] with both drifts ([`Hessian::drift`](crate::Hessian::drift),
/// [`Hessian::stream_drift`](crate::Hessian::stream_drift)), and with the time it took.
pub(crate) fn solve(
    weights: ArrayView2<'_, f32>,
    hessian: &Mat<f64>,
    [drift, stream_drift]: [Option<&Mat<f64>>; 2],
    options: &Options,
    dialect: Dialect,
) -> Solved {
    let begun = Instant::now();
    let cols = weights.ncols();
    let prepared = match Prepared::new(weights, hessian, options, dialect) {
        Ok(prepared) => prepared,
        Err(rounded) => return Solved { quantized: *rounded, factoring: Duration::ZERO },
    };
    let correction = drift
        .filter(|_| options.gptaq_alpha != 0.0)
        .map(|drift| prepared.correction(drift.as_ref(), options.gptaq_alpha));
    let shifted = stream_drift
        .filter(|_| options.stream_alpha != 0.0)
        .map(|drift| &weights + &prepared.shifts(drift.as_ref(), options.stream_alpha));
    let weights = shifted.as_ref().map_or(weights, |shifted| shifted.view());
    let factoring = begun.elapsed();
    let Prepared { dead, hessian, perm, factor, damp_percent, damp, importance } = prepared;

    let permuted_importance: Vec<f32> = perm.iter().map(|&k| importance[k]).collect();
    let group_len = options.grid.group_len(cols);
    let groups = options.grid.groups(cols);
    let whole_row = options.grid.group_size.is_none();
    let fixed_groups = options.static_groups || whole_row;
    // gptq.py chooses whole-row scales before it clears dead inputs.
    let clears_dead = dialect == Dialect::Own || !whole_row;
    let columns = Columns {
        options,
        dialect,
        perm: &perm,
        importance: &permuted_importance,
        factor: &factor,
        correction: correction.as_ref(),
        fixed_groups,
    };

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
                    let weight = |(&w, &dead): (&f32, &bool)| if dead && clears_dead { 0.0 } else { f64::from(w) };
                    let row: Vec<f64> = row.iter().zip(&dead).map(weight).collect();
                    for (group, params) in params.iter_mut().enumerate() {
                        let range = group * group_len..((group + 1) * group_len).min(cols);
                        *params = find_params(options, dialect, &row[range.clone()], &importance[range]);
                    }
                }
            }
            let mut permuted = Array2::from_shape_fn(weights.dim(), |(row, col)| {
                let k = perm[col];
                if dead[k] { 0.0 } else { f64::from(weights[(row, k)]) }
            });
            let loss = columns.run(permuted.view_mut(), codes.view_mut(), params.view_mut());
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
    let (loss, method) = (losses.iter().sum(), Method::Gptq { damp_percent });
    let mut quantized = Quantized { grid: options.grid, codes, scales, zeros, g_idx, loss, method };
    if options.refine > 0 {
        drop((factor, correction));
        let mut alive = weights.to_owned();
        (0..cols).filter(|&k| dead[k]).for_each(|k| alive.column_mut(k).fill(0.0));
        refine(&mut quantized, alive.view(), hessian.as_ref(), drift, damp, options);
    }
    if dialect == Dialect::Own {
        quantized.round_scales(options);
    }
    Solved { quantized, factoring }
}

/// The column walk over some rows. Everything except `perm` is in permuted column order.
struct Columns<'a> {
    options: &'a Options,
    dialect: Dialect,
    perm: &'a [usize],
    importance: &'a [f32],
    /// U with `U^T U = H^-1`.
    factor: &'a Array2<f64>,
    /// [`Prepared::correction`].
    correction: Option<&'a Array2<f64>>,
    /// True if scales are chosen before error feedback.
    fixed_groups: bool,
}

impl Columns<'_> {
    /// Quantizes `weights` `[rows, cols]` (permuted) into `codes` (original order). Unless groups are fixed, chooses `params`
    /// `[rows, groups]` when the walk reaches a group. Returns the loss.
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
                let before_block = (self.dialect == Dialect::GptqPy).then(|| weights[start..].to_vec());
                for col in start..end {
                    let k = self.perm[col];
                    let group = if self.fixed_groups { k } else { col } / group_len;
                    if !self.fixed_groups && col % group_len == 0 {
                        let range = col..(col + group_len).min(cols);
                        let of_group = match &before_block {
                            Some(before) => &before[range.start - start..range.end - start],
                            None => &weights[range.clone()],
                        };
                        params[(row, group)] =
                            find_params(self.options, self.dialect, of_group, &self.importance[range]);
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
