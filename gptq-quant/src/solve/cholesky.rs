//! The upper Cholesky factor of the inverse Hessian, which GPTQ uses to compensate errors.

use faer::{
    Auto, Mat, MatRef, Par, Spec,
    dyn_stack::{MemBuffer, MemStack},
    linalg::{
        cholesky::llt::factor::{LltParams, cholesky_in_place, cholesky_in_place_scratch},
        triangular_inverse::invert_lower_triangular,
    },
};
use ndarray::{Array2, Axis};
use rayon::prelude::*;

/// Threads to divide work for. Fixed, so that the order of sums and the result are the same on every machine.
pub(crate) const DEGREE: usize = 16;

/// The upper triangular U with `U^T U = H^-1`, where H is `hessian` with rows and columns in the order `perm` and `damp`
/// added to its diagonal. `None` if H is not positive definite.
///
/// Factors H with rows and columns reversed: its lower Cholesky factor, reversed again, is an upper R with `H = R R^T`, and
/// `U = R^-1`. One factorization and one triangular inverse cost half of factor, inverse, factor.
pub fn inverse_factor(hessian: MatRef<'_, f64>, perm: &[usize], damp: f64) -> Option<Array2<f64>> {
    let n = perm.len();
    let par = Par::rayon(DEGREE);
    let source = |i: usize| perm[n - 1 - i];
    let damped = |i, j| hessian[(source(i), source(j))] + if i == j { damp } else { 0.0 };
    // The factorization reads the lower triangle only.
    let mut factor = square(n, |i, j| if i >= j { damped(i, j) } else { 0.0 });

    let params = Spec::from(<LltParams as Auto<f64>>::auto());
    let mut memory = MemBuffer::new(cholesky_in_place_scratch::<f64>(n, par, params));
    cholesky_in_place(factor.as_mut(), Default::default(), par, MemStack::new(&mut memory), params).ok()?;
    let mut inverse = Mat::zeros(n, n);
    invert_lower_triangular(inverse.as_mut(), factor.as_ref(), par);

    let upper = by_rows(n, n, |i, j| if i <= j { inverse[(n - 1 - i, n - 1 - j)] } else { 0.0 });
    // Tiny pivots can pass the factorization and overflow the inverse.
    let rows = upper.axis_iter(Axis(0)).into_par_iter();
    rows.all(|row| row.iter().all(|v| v.is_finite())).then_some(upper)
}

/// A row-major array `[rows, cols]` filled in parallel. Fast if `value` reads column-major memory.
pub(crate) fn by_rows<T: Clone + Default + Send + Sync>(
    rows: usize,
    cols: usize,
    value: impl Fn(usize, usize) -> T + Sync,
) -> Array2<T> {
    // 32 rows at a time, so that one read of a column fetches 32 useful values.
    const ROWS: usize = 32;
    let mut array = Array2::from_elem((rows, cols), T::default());
    array.axis_chunks_iter_mut(Axis(0), ROWS).into_par_iter().enumerate().for_each(|(chunk, mut rows)| {
        for j in 0..cols {
            let column = rows.column_mut(j);
            column.into_iter().enumerate().for_each(|(i, entry)| *entry = value(chunk * ROWS + i, j));
        }
    });
    array
}

/// A column-major `[n, n]` matrix filled in parallel.
pub(crate) fn square(n: usize, value: impl Fn(usize, usize) -> f64 + Sync) -> Mat<f64> {
    filled(n, n, value)
}

/// A column-major `[rows, cols]` matrix filled in parallel.
pub(crate) fn filled(rows: usize, cols: usize, value: impl Fn(usize, usize) -> f64 + Sync) -> Mat<f64> {
    let mut matrix = Mat::zeros(rows, cols);
    matrix.as_mut().par_col_iter_mut().enumerate().for_each(|(j, column)| {
        column.iter_mut().enumerate().for_each(|(i, entry)| *entry = value(i, j));
    });
    matrix
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A well-conditioned symmetric matrix.
    fn matrix(n: usize) -> Mat<f64> {
        Mat::from_fn(n, n, |i, j| {
            let distance = i.abs_diff(j) as f64;
            (-distance / 3.0).exp() + if i == j { 1.0 + i as f64 / n as f64 } else { 0.0 }
        })
    }

    #[test]
    fn factor_inverts_the_damped_and_permuted_matrix() {
        let n = 150;
        let h = matrix(n);
        let perm: Vec<usize> = (0..n).map(|i| (i * 7) % n).collect();
        let u = inverse_factor(h.as_ref(), &perm, 0.25).unwrap();
        // U^T U H = 1 implies U H U^T = 1, which needs no inverse to check.
        let damped = Array2::from_shape_fn((n, n), |(i, j)| h[(perm[i], perm[j])] + if i == j { 0.25 } else { 0.0 });
        let one = u.dot(&damped).dot(&u.t());
        for ((i, j), &value) in one.indexed_iter() {
            let expected = if i == j { 1.0 } else { 0.0 };
            assert!((value - expected).abs() < 1e-12, "({i}, {j}): {value}");
        }
        assert!(u.indexed_iter().all(|((i, j), &v)| if i == j { v > 0.0 } else { j > i || v == 0.0 }));
    }

    #[test]
    fn rejects_matrices_that_are_not_positive_definite() {
        let h = Mat::from_fn(3, 3, |i, j| if i == j { 1.0 } else { -1.0 });
        assert!(inverse_factor(h.as_ref(), &[0, 1, 2], 0.0).is_none());
        assert!(inverse_factor(h.as_ref(), &[0, 1, 2], 1.5).is_some());
        let nan = Mat::from_fn(3, 3, |_, _| f64::NAN);
        assert!(inverse_factor(nan.as_ref(), &[0, 1, 2], 1.0).is_none());
    }

    #[test]
    fn same_bits_for_any_number_of_threads() {
        let h = matrix(700);
        let perm: Vec<usize> = (0..700).rev().collect();
        let on = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| inverse_factor(h.as_ref(), &perm, 0.01).unwrap())
        };
        let one = on(1);
        assert!([2, 3, 7].into_iter().all(|threads| on(threads) == one));
    }
}
