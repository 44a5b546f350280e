//! [`Matrix`]: a weight matrix on the device, and the operations that read it.
//!
//! A matrix that exceeds the limit of a binding is cut by rows into slices. Each operation is recorded once per slice. Rows are outputs,
//! so slices are independent.

use std::{borrow::Cow, ops::Range};

use half::f16;
use model_format::{Weight, quant::no_quant};

use crate::{
    Gpu, KvDtype, KvPool, Result, Rows, WeightFormat,
    embedding::Embedding,
    gemm::{Cooperative, Few, Gemm, LaneRows, Narrow},
    gemv::{self, Gemv, GemvAdd, GemvRope, GemvScaled},
    gpu::{Buffer, FEWEST_ROWS, Recorder, SLICE_ALIGN},
    kernel::product,
    slice::pairs,
};

pub use crate::slice::Slice;

/// A weight matrix `[rows, cols]` on the device: `rows` outputs, `cols` inputs.
pub struct Matrix {
    /// Outputs, N.
    pub rows: usize,
    /// Inputs, K.
    pub cols: usize,
    /// Storage format of the weights.
    pub format: WeightFormat,
    /// In order of their rows.
    pub slices: Vec<Slice>,
}

impl Matrix {
    /// Uploads a matrix.
    ///
    /// Errors: out of memory. Panics if `weight` is not a matrix.
    pub fn upload(gpu: &Gpu, weight: &Weight) -> Result<Matrix> {
        Matrix::upload_sliced(gpu, weight, gpu.slice_bytes())
    }

    /// [`Matrix::upload`] in slices of at most `slice_bytes`.
    pub fn upload_sliced(gpu: &Gpu, weight: &Weight, slice_bytes: u64) -> Result<Matrix> {
        let (stored, rows, cols) = Stored::of(weight);
        let matrix = Matrix::zeroed(gpu, stored.format(), rows, cols, slice_bytes)?;
        matrix.write_rows(gpu, 0, weight);
        Ok(matrix)
    }

    /// An empty matrix of `rows` rows in the format of `part`. Fill it by [`Matrix::write_rows`].
    ///
    /// Errors and panics as with [`Matrix::upload`].
    pub fn with_room(gpu: &Gpu, part: &Weight, rows: usize) -> Result<Matrix> {
        let (stored, _, cols) = Stored::of(part);
        Matrix::zeroed(gpu, stored.format(), rows, cols, gpu.slice_bytes())
    }

    /// A matrix without memory, for a planning recorder.
    pub fn hollow(recorder: &Recorder, format: WeightFormat, rows: usize, cols: usize) -> Matrix {
        let hollow = |len: usize| Ok(recorder.hollow(len).expect("the recorder plans"));
        let matrix = Matrix::made_of(&hollow, format, rows, cols, recorder.gpu().slice_bytes());
        matrix.expect("nothing is allocated")
    }

    pub(crate) fn zeroed(
        gpu: &Gpu,
        format: WeightFormat,
        rows: usize,
        cols: usize,
        slice_bytes: u64,
    ) -> Result<Matrix> {
        Matrix::made_of(&|len| gpu.zeroed(len), format, rows, cols, slice_bytes)
    }

    fn made_of(
        buffer: &dyn Fn(usize) -> Result<Buffer<u32>>,
        format: WeightFormat,
        rows: usize,
        cols: usize,
        slice_bytes: u64,
    ) -> Result<Matrix> {
        let (row_words, row_scales) = (format.row_words(cols), format.row_scales(cols));
        let most = (slice_bytes / (4 * row_words as u64)) as usize;
        // The scales of two rows fill whole words. Large slices have a multiple of 256 rows.
        let slice_rows = if most >= 256 { most & !255 } else { most.max(2) & !1 };
        let mut slices = Vec::with_capacity(rows.div_ceil(slice_rows));
        for first_row in (0..rows).step_by(slice_rows) {
            let rows = slice_rows.min(rows - first_row);
            let q_weight = buffer(rows * row_words)?;
            let q_scale = match row_scales {
                0 => q_weight.clone(),
                _ => buffer((rows * row_scales).div_ceil(2))?,
            };
            slices.push(Slice { first_row, rows, cols, format, q_weight, q_scale });
        }
        Ok(Matrix { rows, cols, format, slices })
    }

    /// Writes the rows from `first_row` on, which is even. Panics if `part` has another format or other columns.
    pub fn write_rows(&self, gpu: &Gpu, first_row: usize, part: &Weight) {
        let (stored, rows, cols) = Stored::of(part);
        assert_eq!((stored.format(), cols), (self.format, self.cols), "write_rows: the kind of rows");
        assert!(first_row.is_multiple_of(2) && first_row + rows <= self.rows, "write_rows: {first_row} + {rows}");
        for slice in &self.slices {
            let begin = first_row.max(slice.first_row);
            let end = (first_row + rows).min(slice.first_row + slice.rows);
            if begin < end {
                stored.write(gpu, slice, begin - slice.first_row, begin - first_row..end - first_row);
            }
        }
    }

    /// An empty matrix. Fill it by [`Matrix::write_stored`]. Errors: out of memory.
    pub fn of_format(gpu: &Gpu, format: WeightFormat, rows: usize, cols: usize) -> Result<Matrix> {
        Matrix::zeroed(gpu, format, rows, cols, gpu.slice_bytes())
    }

    /// Writes the rows from `first_row` on, which is even, from bytes of a little-endian file in the device's layout: codes or numbers,
    /// and the scales of codes. The bytes are copied only once, into memory that the device reads.
    ///
    /// Panics if the bytes are not whole rows of the matrix.
    pub fn write_stored(&self, gpu: &Gpu, first_row: usize, codes: &[u8], scales: &[u8]) {
        let (row, row_scales) = (4 * self.format.row_words(self.cols), 2 * self.format.row_scales(self.cols));
        let rows = codes.len() / row;
        assert_eq!((codes.len(), scales.len()), (rows * row, rows * row_scales), "write_stored: bytes of {rows} rows");
        assert!(first_row.is_multiple_of(2) && first_row + rows <= self.rows, "write_stored: {first_row} + {rows}");
        for slice in &self.slices {
            let begin = first_row.max(slice.first_row);
            let end = (first_row + rows).min(slice.first_row + slice.rows);
            if begin >= end {
                continue;
            }
            let (at, from, to) = (begin - slice.first_row, begin - first_row, end - first_row);
            gpu.write_bytes_at(&slice.q_weight, at * row / 4, &codes[from * row..to * row]);
            let scales = &scales[from * row_scales..to * row_scales];
            match scales.len() % 4 {
                0 => gpu.write_bytes_at(&slice.q_scale, at * row_scales / 4, scales),
                // An odd number of rows needs another half word at the end of the matrix.
                _ => gpu.write_bytes_at(&slice.q_scale, at * row_scales / 4, &[scales, &[0; 2]].concat()),
            }
        }
    }

    /// The values `[rows, cols]` of a matrix in f32. Waits for the device.
    pub async fn read(&self, recorder: &mut Recorder) -> Result<Vec<f32>> {
        assert_eq!(self.format, WeightFormat::F32, "read: the format");
        let stride = self.format.row_words(self.cols);
        let mut values = Vec::with_capacity(self.rows * self.cols);
        for slice in &self.slices {
            let rows = recorder.read(&slice.q_weight.cast::<f32>())?.await?;
            if stride == self.cols && self.slices.len() == 1 {
                return Ok(rows);
            }
            rows.chunks_exact(stride).for_each(|row| values.extend_from_slice(&row[..self.cols]));
        }
        Ok(values)
    }

    /// `y[t, :] = scale * w[tokens[t], :]`. `tokens`: `[count]`. `y`: [count, cols].
    pub fn embedding(&self, recorder: &mut Recorder, tokens: &Buffer<u32>, count: usize, scale: f32, y: &Buffer<f32>) {
        for slice in &self.slices {
            Embedding { tokens: count, scale }.record(recorder, slice, tokens, y);
        }
    }

    /// `y[m, n] = sum over k of x[m, k] * w[n, k]`. `x`: [m, cols]. `y`: [m, rows]. On a slow device it records several dispatches, which
    /// give the same bits as one.
    pub fn linear(&self, recorder: &mut Recorder, x: &Buffer<f32>, m: usize, y: &Buffer<f32>) {
        let largest = self.slices.iter().map(|slice| slice.rows).max().unwrap_or(0);
        // A binding begins at a multiple of SLICE_ALIGN elements.
        let step = if (self.rows | self.cols).is_multiple_of(4) { SLICE_ALIGN / 4 } else { SLICE_ALIGN };
        let ranges = recorder.row_ranges(m, product(&[2, largest, self.cols]), step);
        if ranges.len() == 1 {
            return self.linear_rows(recorder, x, m, y);
        }
        for range in ranges {
            let rows = range.len();
            let x = x.slice(range.start * self.cols, rows * self.cols);
            let y = y.slice(range.start * self.rows, rows * self.rows);
            self.linear_rows(recorder, &x, rows, &y);
        }
    }

    fn linear_rows(&self, recorder: &mut Recorder, x: &Buffer<f32>, m: usize, y: &Buffer<f32>) {
        let in_lane_rows = LaneRows::supports(recorder.gpu().caps()) && !recorder.gpu().is_off(LaneRows::NAME);
        let is_on = |name| !recorder.gpu().is_off(name);
        let caps = recorder.gpu().caps();
        // Few rows and many must use the same precision, so neither kernel runs without the other.
        let has_units = is_on(Cooperative::NAME) && is_on(Narrow::NAME);
        let is_few = Few::supports(caps, self.format, m) && is_on(Few::NAME);
        if has_units && (is_few || Cooperative::supports(caps, self.format, m)) {
            let x = Narrow::record(recorder, self.format, x, m, self.cols);
            for slice in &self.slices {
                recorder.expect_work(&[2, m, slice.rows, slice.cols]);
                if is_few {
                    Few { m, y_stride: self.rows }.record(recorder, slice, &x, y);
                } else {
                    Cooperative { m, y_stride: self.rows }.record(recorder, slice, &x, y);
                }
            }
            return;
        }
        // The tiles of `Gemm` are for many rows. For a few, the weights are rather read twice.
        let first = gemv::MAX_BATCH;
        let is_aligned =
            (first * self.rows).is_multiple_of(SLICE_ALIGN) && (first * self.cols).is_multiple_of(SLICE_ALIGN);
        if !in_lane_rows && (first + 1..FEWEST_ROWS).contains(&m) && is_aligned {
            let (rest_x, rest_y) = ((m - first) * self.cols, (m - first) * self.rows);
            self.linear_rows(recorder, &x.slice(0, first * self.cols), first, &y.slice(0, first * self.rows));
            let (x, y) = (x.slice(first * self.cols, rest_x), y.slice(first * self.rows, rest_y));
            return self.linear_rows(recorder, &x, m - first, &y);
        }
        for slice in &self.slices {
            recorder.expect_work(&[2, m, slice.rows, slice.cols]);
            if in_lane_rows {
                LaneRows { m, y_stride: self.rows }.record(recorder, slice, x, y);
            } else if m <= gemv::MAX_BATCH {
                Gemv { batch: m, y_stride: self.rows }.record(recorder, slice, x, y);
            } else {
                Gemm { m, y_stride: self.rows }.record(recorder, slice, x, y);
            }
        }
    }

    /// True if the device runs [`Matrix::linear_add`] with this matrix.
    pub fn fuses(&self, gpu: &Gpu) -> bool {
        let is_on = !gpu.is_off(gemv::ADD_KERNEL.name) && !gpu.is_off(gemv::SCALED_KERNEL.name);
        is_on && !LaneRows::supports(gpu.caps()) && self.slices.len() == 1
    }

    /// For one row `x`: `sum[n] += sum over k of x[k] * w[n, k]` and `y[n] = sum[n] * norm[n]`. The norm of `sum` is `y` times the
    /// returned factor, which [`Matrix::linear_normed`] applies. `x`: `[cols]`. `norm`, `sum`, `y`: `[rows]`.
    pub fn linear_add(
        &self,
        recorder: &mut Recorder,
        x: &Buffer<f32>,
        norm: &Buffer<f32>,
        sum: &Buffer<f32>,
        y: &Buffer<f32>,
        eps: f32,
    ) -> Factor {
        let add = GemvAdd::of(recorder.gpu(), &self.slices[0]);
        let parts = add.parts(recorder.gpu().caps(), self.rows);
        let squares = recorder.temporary(parts.next_multiple_of(4));
        add.record(recorder, &self.slices[0], x, norm, sum, y, &squares);
        Factor { squares, parts, eps }
    }

    /// `y[n] = sum over k of factor * x[k] * w[n, k]`. `x`: `[cols]`. `y`: `[rows]`.
    pub fn linear_normed(&self, recorder: &mut Recorder, x: &Buffer<f32>, factor: &Factor, y: &Buffer<f32>) {
        let Factor { squares, parts, eps } = factor;
        for slice in &self.slices {
            GemvScaled { parts: *parts, eps: *eps, swiglu: false }.record(recorder, slice, x, squares, y);
        }
    }

    /// [`Matrix::linear_normed`], then `silu` of the first half of the outputs times the second half, for a matrix that
    /// [`Matrix::fuses`]. `y`: [rows / 2].
    pub fn linear_normed_swiglu(&self, recorder: &mut Recorder, x: &Buffer<f32>, factor: &Factor, y: &Buffer<f32>) {
        let Factor { squares, parts, eps } = factor;
        GemvScaled { parts: *parts, eps: *eps, swiglu: true }.record(recorder, &self.slices[0], x, squares, y);
    }
}

impl Matrix {
    /// True if the device runs [`Matrix::linear_normed_turned`] with this matrix and these heads.
    pub fn turns(&self, gpu: &Gpu, head_dim: usize, rotary_dim: usize, dtype: KvDtype) -> bool {
        self.fuses(gpu) && !gpu.is_off(gemv::ROPE_KERNEL.name) && GemvRope::supports(head_dim, rotary_dim, dtype)
    }

    /// [`Matrix::linear_normed`] for the matrix of queries, keys and values of the only row of `rows`. Rotated queries go to `q`, rotated
    /// keys and values to the pool. `rope`: [positions, head_dim / 2, 2]. `q`: [heads * head_dim].
    #[expect(clippy::too_many_arguments, reason = "the buffers of a fused operation")]
    pub fn linear_normed_turned(
        &self,
        recorder: &mut Recorder,
        x: &Buffer<f32>,
        factor: &Factor,
        rope: &Buffer<f32>,
        rows: &Rows,
        q: &Buffer<f32>,
        pool: &KvPool,
    ) {
        let Factor { squares, parts, eps } = factor;
        let heads = self.rows / pool.head_dim - 2 * pool.kv_heads;
        let kernel = GemvRope { parts: *parts, eps: *eps, heads };
        kernel.record(recorder, &self.slices[0], x, squares, rope, rows, q, pool);
    }
}

/// The factor on the device by which a row must be multiplied to be normed: see [`Matrix::linear_add`].
pub struct Factor {
    /// Partial sums of the row's squares.
    pub squares: Buffer<f32>,
    parts: usize,
    eps: f32,
}

impl Factor {
    /// The factor of `parts` partial sums of squares.
    pub(crate) fn new(squares: Buffer<f32>, parts: usize, eps: f32) -> Factor {
        Factor { squares, parts, eps }
    }

    /// Computes the factor from the partial sums and the number of columns of the row.
    pub fn of(&self, squares: &[f32], cols: usize) -> f32 {
        1.0 / (squares.iter().take(self.parts).sum::<f32>() / cols as f32 + self.eps).sqrt()
    }
}

/// A host matrix in its device format.
enum Stored<'a> {
    Group { format: WeightFormat, q_weight: &'a [u32], q_scale: Vec<f16> },
    F16(&'a [f16]),
    F32(Cow<'a, [f32]>),
}

impl<'a> Stored<'a> {
    /// Also returns its rows and columns.
    fn of(weight: &'a Weight) -> (Stored<'a>, usize, usize) {
        let shape = weight.shape();
        let &[rows, cols] = shape.as_slice() else { panic!("Matrix: a matrix has two extents, found: {shape:?}") };
        let stored = match weight {
            Weight::Quantized(matrix) => {
                let group = matrix.group();
                assert_eq!(group.words_per_group(), 4, "{}: kernels read a group as four words", matrix.format.name);
                match matrix.q_scale.to_f16() {
                    Some(q_scale) => Stored::Group { format: group.into(), q_weight: &matrix.q_weight, q_scale },
                    // These scales are too small for the kernels' f16.
                    None => Stored::F32(matrix.dequantize().into()),
                }
            }
            Weight::F16 { data, .. } => Stored::F16(data),
            Weight::F32 { data, .. } => Stored::F32(data.into()),
        };
        (stored, rows, cols)
    }

    fn format(&self) -> WeightFormat {
        match self {
            Stored::Group { format, .. } => *format,
            Stored::F16(_) => WeightFormat::F16,
            Stored::F32(_) => WeightFormat::F32,
        }
    }

    /// Writes `rows` rows into a slice from its row `at` on, which is even.
    fn write(&self, gpu: &Gpu, slice: &Slice, at: usize, rows: Range<usize>) {
        let cols = slice.cols;
        let (row_words, row_scales) = (slice.format.row_words(cols), slice.format.row_scales(cols));
        let values = rows.start * cols..rows.end * cols;
        let words = match self {
            Stored::Group { q_weight, q_scale, .. } => {
                let scales = pairs(&q_scale[rows.start * row_scales..rows.end * row_scales]);
                gpu.write_at(&slice.q_scale, at * row_scales / 2, &scales);
                Cow::Borrowed(&q_weight[rows.start * row_words..rows.end * row_words])
            }
            Stored::F16(data) => no_quant::f16_words(cols, &data[values]).into(),
            Stored::F32(data) => no_quant::f32_words(cols, &data[values]).into(),
        };
        gpu.write_at(&slice.q_weight, at * row_words, &words);
    }
}

#[cfg(all(test, not(target_arch = "wasm32")))]
mod tests {
    use super::*;
    use crate::{
        cases::{Random, four_bits, random_matrix, with_outliers},
        gpu::{OpenOptions, block_on, for_test},
    };

    /// Multiplies `m` rows on a device of each profile, for each of `numbers`. `check` gets the profile, the results and those of the
    /// first rows of 130.
    fn products(numbers: &[usize], check: impl Fn(&str, usize, &[f32], &[f32])) {
        for (name, options) in OpenOptions::PROFILES {
            let Some(gpu) = for_test(options) else { return };
            // The slices of an aligned matrix and of another one.
            for (rows, cols) in [(136, 1184), (66, 96)] {
                let [q_weight, q_scale] = random_matrix(four_bits(), rows, cols, 1);
                let matrix = Matrix::of_format(&gpu, four_bits(), rows, cols).unwrap();
                gpu.write_at(&matrix.slices[0].q_weight, 0, &q_weight.words);
                gpu.write_at(&matrix.slices[0].q_scale, 0, &q_scale.words);
                let x = gpu.upload(&with_outliers(Random::new(2).values(130 * cols))).unwrap();
                let product = |m: usize| -> Vec<f32> {
                    let (mut recorder, y) = (Recorder::new(&gpu), gpu.zeroed::<f32>(m * rows).unwrap());
                    matrix.linear(&mut recorder, &x, m, &y);
                    block_on(recorder.read(&y).unwrap()).unwrap()
                };
                let all = product(130);
                for &m in numbers {
                    check(name, m, &product(m), &all[..m * rows]);
                }
            }
        }
    }

    #[test]
    fn from_the_fewest_rows_on_a_row_does_not_depend_on_their_number() {
        products(&[FEWEST_ROWS, 17, 33, 64, 65], |name, m, found, expected| {
            let is_same = |(found, expected): (&f32, &f32)| found.to_bits() == expected.to_bits();
            assert!(found.iter().zip(expected).all(is_same), "{name}: {m} rows");
        });
    }

    #[test]
    fn fewer_rows_differ_by_rounding_alone() {
        products(&[1, 2, 5, 8, 9, 15], |name, m, found, expected| {
            let square = |v: f32| f64::from(v) * f64::from(v);
            let error: f64 = found.iter().zip(expected).map(|(found, expected)| square(found - expected)).sum();
            let power: f64 = expected.iter().map(|expected| square(*expected)).sum();
            assert!(error <= 1e-6 * power, "{name}: {m} rows: {error:.1e} of {power:.1e}");
        });
    }
}
