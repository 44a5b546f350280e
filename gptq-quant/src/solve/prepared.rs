//! [`Prepared`]: everything about a matrix's inputs that GPTQ needs: dead inputs, column order, the factor of the inverse
//! Hessian, and the matrices that follow from it.

use std::borrow::Cow;

use faer::{
    Accum, Mat, MatRef, Par,
    linalg::matmul::{
        matmul,
        triangular::{self, BlockStructure},
    },
};
use ndarray::{Array2, ArrayView2};

use super::{
    cholesky::{DEGREE, by_rows, inverse_factor, square},
    dialect::Dialect,
    nearest::nearest,
    options::Options,
    quantized::Quantized,
};

/// The Hessian and its factor, prepared for one matrix.
pub(crate) struct Prepared<'a> {
    /// `[cols]`: true for inputs that were zero on every token.
    pub(crate) dead: Vec<bool>,
    /// The Hessian, with 1 on the diagonal of dead inputs.
    pub(crate) hessian: Cow<'a, Mat<f64>>,
    /// The column order `[cols]`.
    pub(crate) perm: Vec<usize>,
    /// `[cols, cols]` in that order: the upper U with `U^T U = H^-1` of the damped Hessian.
    pub(crate) factor: Array2<f64>,
    /// Damping as a share of the mean diagonal entry.
    pub(crate) damp_percent: f64,
    /// Damping as a number, added to the diagonal.
    pub(crate) damp: f64,
    /// `[cols]`: the diagonal, zero for dead inputs. Weight errors in scale searches are multiplied by it.
    pub(crate) importance: Vec<f32>,
}

impl<'a> Prepared<'a> {
    /// Factors the Hessian. Raises the damping tenfold, twice at most, until it is positive definite. Returns `Err` with the matrix
    /// rounded to nearest if no damping suffices or no input is alive.
    pub(crate) fn new(
        weights: ArrayView2<'_, f32>,
        hessian: &'a Mat<f64>,
        options: &Options,
        dialect: Dialect,
    ) -> Result<Prepared<'a>, Box<Quantized>> {
        let cols = weights.ncols();
        assert_eq!((hessian.nrows(), hessian.ncols()), (cols, cols), "quantize: Hessian of {cols} inputs");
        let dead: Vec<bool> = (0..cols).map(|i| hessian[(i, i)] == 0.0).collect();
        let diagonal: Vec<f64> = (0..cols).map(|i| if dead[i] { 1.0 } else { hessian[(i, i)] }).collect();
        let mean_diagonal = mean_diagonal(&diagonal, &dead, dialect);
        if dead.iter().all(|&dead| dead) || !mean_diagonal.is_finite() {
            return Err(Box::new(nearest(weights, None, options, dialect)));
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
            return Err(Box::new(nearest(weights, Some(&diagonal), options, dialect)));
        };
        let importance = diagonal.iter().zip(&dead).map(|(&d, &dead)| if dead { 0.0 } else { d as f32 }).collect();
        Ok(Prepared { dead, hessian, perm, factor, damp_percent, damp: damp_percent * mean_diagonal, importance })
    }

    /// GPTAQ's P `[cols, cols]`, strictly upper triangular, in the order `perm`: `alpha * triu(D U^T, 1) U`, with D the `drift`
    /// and U the factor. Row k: the share of weight k that is added to each later weight, to compensate the drift of input k.
    pub(crate) fn correction(&self, drift: MatRef<'_, f64>, alpha: f64) -> Array2<f64> {
        use BlockStructure::{Rectangular, StrictTriangularUpper, TriangularLower, TriangularUpper};
        let (perm, n, par) = (&self.perm, self.perm.len(), Par::rayon(DEGREE));
        let drift = square(n, |i, j| drift[(perm[i], perm[j])]);
        // The factor's rows, read as columns, are its transpose.
        let transposed = MatRef::from_column_major_slice(self.factor.as_slice().expect("rows are contiguous"), n, n);
        let factor = transposed.transpose();
        // Triangular products compute only the part above the diagonal and skip multiplications by zero.
        let mut product = Mat::zeros(n, n);
        let (drift, upper, lower) = (drift.as_ref(), TriangularUpper, TriangularLower);
        let (product_of, replace) = (StrictTriangularUpper, Accum::Replace);
        triangular::matmul(product.as_mut(), product_of, replace, drift, Rectangular, transposed, lower, alpha, par);
        let mut correction = Mat::zeros(n, n);
        let product = product.as_ref();
        triangular::matmul(correction.as_mut(), product_of, replace, product, product_of, factor, upper, 1.0, par);
        by_rows(n, n, |i, j| correction[(i, j)])
    }

    /// The shift of the weights `[rows, cols]` that cancels the residual-stream error: `alpha * R H^-1`, with R the
    /// `stream_drift` and `H^-1 = U^T U`. GPTQ and refinement of the shifted weights minimize the same objective: completing the
    /// square moves the linear term of R into the weights.
    pub(crate) fn shifts(&self, stream_drift: MatRef<'_, f64>, alpha: f64) -> Array2<f32> {
        let (rows, perm, n) = (stream_drift.nrows(), &self.perm, self.perm.len());
        let permuted = Mat::from_fn(rows, n, |i, j| stream_drift[(i, perm[j])]);
        let factor = Mat::from_fn(n, n, |i, j| self.factor[(i, j)]);
        let (mut half, mut whole) = (Mat::zeros(rows, n), Mat::zeros(rows, n));
        matmul(half.as_mut(), Accum::Replace, permuted.as_ref(), factor.transpose(), alpha, Par::rayon(DEGREE));
        matmul(whole.as_mut(), Accum::Replace, half.as_ref(), factor.as_ref(), 1.0, Par::rayon(DEGREE));
        let mut shifts = Array2::zeros((rows, n));
        perm.iter().enumerate().for_each(|(j, &k)| (0..rows).for_each(|i| shifts[(i, k)] = whole[(i, j)] as f32));
        shifts
    }
}

/// The mean diagonal entry, of which damping is a share. Dead inputs are left out: the 1 that replaces their entry would be most
/// of the mean if activations are small. gptq.py includes them.
fn mean_diagonal(diagonal: &[f64], dead: &[bool], dialect: Dialect) -> f64 {
    let counted = diagonal.iter().zip(dead).filter(|(_, dead)| !**dead || dialect == Dialect::GptqPy);
    let (sum, count) = counted.fold((0.0, 0usize), |(sum, count), (value, _)| (sum + value, count + 1));
    sum / count as f64
}
