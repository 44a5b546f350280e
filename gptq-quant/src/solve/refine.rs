//! Coordinate descent on GPTQ's objective after GPTQ (QuantEase, Behdin and others, 2023): group by group, sets the scale and
//! then each code to the value that minimizes the objective while all others stay fixed.
//!
//! GPTQ decides each column once, before it knows the errors of later columns. Let `w` be a row of the weights, `v` its
//! quantized values, X the inputs and `X' = X + alpha (X_float - X)`. The objective is `|w X'^T - v X^T|^2`. Only
//! `r = w X'^T X - v X^T X` must be known: changing `v_k` by `d` changes the objective by `d^2 H_kk - 2 d r_k`.

use faer::Mat;
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, CowArray, Ix2, linalg::general_mat_mul, s};
use rayon::prelude::*;

use super::{cholesky::by_rows, grid::GroupParams, options::Options, quantized::Quantized};

/// Rows per task of GPTQ and of refinement, so that a block of the factor or the Hessian is read from the cache.
pub(crate) const ROWS: usize = 32;

/// Refines `quantized` in `options.refine` sweeps. `weights` `[rows, cols]` must be zero for dead inputs. `damp` is added to
/// the diagonal of `hessian`.
pub(crate) fn refine(
    quantized: &mut Quantized,
    weights: ArrayView2<'_, f32>,
    hessian: &Mat<f64>,
    drift: Option<&Mat<f64>>,
    damp: f64,
    options: &Options,
) {
    let cols = weights.ncols();
    // f32 is enough: its rounding errors are small beside the remaining gain.
    let hessian = by_rows(cols, cols, |i, j| (hessian[(i, j)] + if i == j { damp } else { 0.0 }) as f32);
    let drift = drift
        .filter(|_| options.gptaq_alpha != 0.0)
        .map(|drift| by_rows(cols, cols, |i, j| (drift[(i, j)] * options.gptaq_alpha) as f32));
    let mut groups = vec![Vec::new(); quantized.scales.ncols()];
    quantized.g_idx.iter().enumerate().for_each(|(k, &group)| groups[group as usize].push(k));
    let groups: Vec<Group<'_>> = groups
        .into_iter()
        .filter(|columns| !columns.is_empty())
        .map(|columns| {
            let (first, end) = (columns[0], columns[0] + columns.len());
            let rows = match columns.iter().copied().eq(first..end) {
                true => CowArray::from(hessian.slice(s![first..end, ..])),
                false => CowArray::from(hessian.select(Axis(0), &columns)),
            };
            let square = rows.select(Axis(1), &columns).mapv(f64::from);
            Group { square, rows, columns }
        })
        .collect();

    let pieces = weights.axis_chunks_iter(Axis(0), ROWS).into_par_iter();
    let pieces = pieces.zip(quantized.codes.axis_chunks_iter_mut(Axis(0), ROWS));
    let pieces = pieces.zip(quantized.scales.axis_chunks_iter_mut(Axis(0), ROWS));
    let pieces = pieces.zip(quantized.zeros.axis_chunks_iter(Axis(0), ROWS));
    let losses: Vec<f64> = pieces
        .map(|(((weights, mut codes), mut scales), zeros)| {
            let value = |(row, k): (usize, usize)| {
                let group = quantized.g_idx[k] as usize;
                let params = params(scales[(row, group)], zeros[(row, group)]);
                options.grid.value(codes[(row, k)], params) as f32
            };
            let values = Array2::from_shape_fn(weights.dim(), value);
            let wanted = drift.as_ref().map(|drift| weights.dot(drift));
            let mut piece = Piece { residual: (&weights - &values).dot(&hessian), values, options };
            if let Some(wanted) = &wanted {
                piece.residual += wanted;
            }
            for _ in 0..options.refine {
                for (group, of) in groups.iter().enumerate() {
                    piece.visit(
                        of,
                        codes.view_mut(),
                        scales.slice_mut(s![.., group..=group]),
                        zeros.slice(s![.., group]),
                    );
                }
            }
            if let Some(wanted) = &wanted {
                piece.residual -= wanted;
            }
            let left = &weights - &piece.values;
            std::iter::zip(&piece.residual, &left).map(|(&r, &l)| f64::from(r) * f64::from(l)).sum::<f64>()
        })
        .collect();
    quantized.loss = losses.iter().sum();
}

/// A group of inputs that share a scale.
struct Group<'a> {
    columns: Vec<usize>,
    /// The group's rows of the Hessian `[columns, cols]`.
    rows: CowArray<'a, f32, Ix2>,
    /// The group's rows and columns of the Hessian `[columns, columns]`.
    square: Array2<f64>,
}

/// Some rows of the matrix.
struct Piece<'a> {
    options: &'a Options,
    /// `[rows, cols]`.
    values: Array2<f32>,
    /// `w X'^T X - v X^T X` `[rows, cols]`.
    residual: Array2<f32>,
}

impl Piece<'_> {
    /// Updates the scale `[rows, 1]` and then the codes of one group in every row.
    fn visit(
        &mut self,
        group: &Group<'_>,
        mut codes: ArrayViewMut2<'_, u8>,
        mut scales: ArrayViewMut2<'_, f32>,
        zeros: ndarray::ArrayView1<'_, u8>,
    ) {
        let grid = self.options.grid;
        let len = group.columns.len();
        let mut changes = Array2::<f32>::zeros((codes.nrows(), len));
        let mut change_of = vec![0.0; len];
        let mut residual = vec![0.0; len];
        let mut multiples = vec![0.0; len];
        for row in 0..codes.nrows() {
            let zero = zeros[row];
            for (i, &k) in group.columns.iter().enumerate() {
                residual[i] = f64::from(self.residual[(row, k)]);
                multiples[i] = f64::from(codes[(row, k)]) - f64::from(zero);
            }
            change_of.fill(0.0);

            let products = group.square.dot(&ndarray::ArrayView1::from(&multiples[..]));
            let square: f64 = products.iter().zip(&multiples).map(|(p, m)| p * m).sum();
            let along: f64 = residual.iter().zip(&multiples).map(|(r, m)| r * m).sum();
            let old = f64::from(scales[(row, 0)]);
            if square > 0.0 {
                let new = grid.round_scale(old + along / square, self.options.values_in_f16);
                let change = new - old;
                if change * (change * square - 2.0 * along) < 0.0 {
                    scales[(row, 0)] = new as f32;
                    for i in 0..len {
                        change_of[i] += change * multiples[i];
                        residual[i] -= change * products[i];
                    }
                }
            }

            let params = params(scales[(row, 0)], zero);
            for (i, &k) in group.columns.iter().enumerate() {
                let line = group.square.row(i);
                let value = f64::from(self.values[(row, k)]) + change_of[i];
                let code = grid.code(value + residual[i] / line[i], params);
                if code != codes[(row, k)] {
                    let change = grid.value(code, params) - value;
                    codes[(row, k)] = code;
                    change_of[i] += change;
                    residual.iter_mut().zip(line).for_each(|(r, h)| *r -= change * h);
                }
            }
            for (i, &k) in group.columns.iter().enumerate() {
                changes[(row, i)] = change_of[i] as f32;
                self.values[(row, k)] = (f64::from(self.values[(row, k)]) + change_of[i]) as f32;
            }
        }
        general_mat_mul(-1.0, &changes, &group.rows, 1.0, &mut self.residual);
    }
}

fn params(scale: f32, zero: u8) -> GroupParams {
    GroupParams { scale: f64::from(scale), zero: f64::from(zero) }
}
