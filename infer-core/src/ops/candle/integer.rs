//! Integer products of packed matrices with activations rounded to 8 bits, divided among threads.

use model_format::quant::group_quant::dot::Interleaved;

use super::threads::{in_parts, parts};

/// Fewest rows per thread when rows are divided among threads. With fewer, outputs are divided instead.
const ROWS_TOGETHER: usize = 8;

/// `y[m, n] = sum over k of x[m, k] * w[n, k]`, with `x` rounded to 8 bits.
pub(super) fn multiply(matrix: &Interleaved, x: &[f32]) -> Vec<f32> {
    let (n, k) = (matrix.rows(), matrix.cols());
    let m = x.len() / k;
    let parts = parts(m * n * k);
    if m >= parts * ROWS_TOGETHER {
        let rows = m.div_ceil(parts);
        return joined(in_parts(m.div_ceil(rows), |part| {
            let inputs = matrix.round(&x[part * rows * k..((part + 1) * rows).min(m) * k]);
            let mut output = vec![0.0; inputs.len() * n];
            matrix.multiply(&inputs, 0..matrix.strips(), &mut output);
            output
        }));
    }
    let inputs = matrix.round(x);
    let strips = matrix.strips().div_ceil(parts);
    let columns = in_parts(matrix.strips().div_ceil(strips), |part| {
        let strips = part * strips..((part + 1) * strips).min(matrix.strips());
        let mut output = vec![0.0; m * matrix.rows_of(&strips).len()];
        matrix.multiply(&inputs, strips, &mut output);
        output
    });
    if m == 1 || columns.len() == 1 {
        return joined(columns);
    }
    let mut output = Vec::with_capacity(m * n);
    for row in 0..m {
        for columns in &columns {
            let width = columns.len() / m;
            output.extend_from_slice(&columns[row * width..][..width]);
        }
    }
    output
}

/// Concatenates parts.
fn joined(mut parts: Vec<Vec<f32>>) -> Vec<f32> {
    if parts.len() == 1 { parts.swap_remove(0) } else { parts.concat() }
}
