//! Products with activations in eight bits, for `candle.rs`: what is divided among threads, and how.

use model_format::quant::group_quant::dot::Interleaved;

/// Multiplications that are worth a thread's while: fewer are done before another thread is awake.
const FEWEST_PRODUCTS: usize = 700_000;

/// Rows that are multiplied together: with fewer for each thread, outputs are divided instead.
const ROWS_TOGETHER: usize = 8;

/// `y[m, n] = sum over k of x[m, k] * w[n, k]`, `x` rounded to eight bits.
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

/// Parts one behind the other.
fn joined(mut parts: Vec<Vec<f32>>) -> Vec<f32> {
    if parts.len() == 1 { parts.swap_remove(0) } else { parts.concat() }
}

/// Into how many parts so many multiplications are divided.
pub(super) fn parts(products: usize) -> usize {
    (products / FEWEST_PRODUCTS).clamp(1, rayon::current_num_threads())
}

/// What `part` makes of each number below `count`, on as many threads, of which this is one.
pub(super) fn in_parts<T: Send>(count: usize, part: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let mut done: Vec<Option<T>> = (0..count).map(|_| None).collect();
    let (first, others) = done.split_first_mut().expect("there is a part");
    let part = &part;
    if others.is_empty() {
        *first = Some(part(0));
    } else {
        rayon::in_place_scope(|scope| {
            for (i, other) in others.iter_mut().enumerate() {
                scope.spawn(move |_| *other = Some(part(i + 1)));
            }
            *first = Some(part(0));
        });
    }
    done.into_iter().map(|part| part.expect("every part was done")).collect()
}
