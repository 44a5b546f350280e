//! A case of a matrix product with outliers in its activations, for all kernels of one.

use super::gemv;
use crate::{
    Case, Variant, WeightFormat,
    cases::{self, Random, is_outlier, matrix_for_outliers, random_matrix},
    gpu::{Buffer, Recorder},
    kernel::{CaseBuffer, product},
    slice::Slice,
};

/// A case of `y[m, n] = sum over k of x[m, k] * w[n, k]`. Every other shape has outliers in its activations. With `apart`, half of
/// the outputs then depend on ordinary inputs only. Kernels in fixed point pass false: inputs beside an outlier lose precision.
pub(crate) fn case_beside_outliers(
    variant: Variant,
    format: WeightFormat,
    [m, rows, cols]: [usize; 3],
    apart: bool,
    record: impl Fn(&mut Recorder, &Slice, &Buffer<f32>, &Buffer<f32>) + Send + Sync + 'static,
) -> Case {
    let has_outliers = (m + rows).is_multiple_of(2) && cols > 4;
    Case {
        label: format!("{m} x {rows} x {cols}{}", if has_outliers { ", outliers" } else { "" }),
        variant,
        flops: product(&[2, m, rows, cols]),
        bytes: (rows * format.blocks(cols) * format.block_bytes() + 4 * m * (rows + cols)) as u64,
        tolerance: 1e-10,
        buffers: Box::new(move || {
            let random = if has_outliers && apart { matrix_for_outliers } else { random_matrix };
            let [q_weight, q_scale] = random(format, rows, cols, cols as u64);
            let mut x = Random::new(rows as u64).values(m * cols);
            if has_outliers {
                let outliers = x.iter_mut().enumerate().filter(|(i, _)| is_outlier(i % cols));
                outliers.for_each(|(_, value)| *value *= 1e5);
            }
            vec![q_weight, q_scale, CaseBuffer::input(&x), CaseBuffer::output(m * rows)]
        }),
        record: Box::new(move |recorder, b| {
            let w = cases::slice(format, rows, cols, &b[0], &b[1]);
            record(recorder, &w, &b[2].cast(), &b[3].cast());
        }),
        reference: Box::new(move |b| {
            let w = cases::values(format, rows, cols, &b[0].words, &b[1].words);
            let mut y = vec![0.0; m * rows];
            gemv(&w, b[2].values(), cols, &mut y);
            vec![y]
        }),
    }
}
