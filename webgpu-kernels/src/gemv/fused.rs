//! One row times a weight matrix, together with its neighbours in a decoder: [`GemvAdd`] ends a block of the residual
//! stream, [`GemvScaled`] begins the next.
//!
//! A norm between them needs the mean over the whole row, which no workgroup of the first knows. So the first leaves the
//! sums of squares of its rows in parts and multiplies by the norm's weights; the second adds the parts up beside its own
//! sums, and divides its outputs.

use model_format::decoder_config::Activation;

use super::{
    CHECKED_ROWS, GemvParams, KERNEL, NUMBERS, Shape, blocks, candidates, matrix_format, matrix_lens, pick, reference,
    shape, variant,
};
use crate::{
    Case, CaseSet, Kernel, Variant, WeightFormat,
    cases::{self, Random, all_formats, four_bits, random_matrix},
    gpu::{Buffer, Caps, Gpu, Recorder},
    kernel::{Access, CaseBuffer, Params, params},
    matrix::Slice,
    tuning::{Trial, Tunable},
};

/// `sum[n] += sum over k of x[k] * w[n, k]`, then `y[n] = sum[n] * norm[n]`, and `squares`, whose total is that of
/// `sum[n]^2`.
pub struct GemvAdd {
    shape: Shape,
}

/// `y[n] = sum over k of x[k] / sqrt(total of squares / cols + eps) * w[n, k]`, and with `swiglu`
/// `silu(y[i]) * y[rows / 2 + i]` of that.
pub struct GemvScaled {
    /// Number of parts in `squares`.
    pub parts: usize,
    /// Added to the mean square before its root.
    pub eps: f32,
    /// Whether the rows of `w` are those of a gate and then as many of what it gates. Such a matrix is in one slice.
    pub swiglu: bool,
}

params! {
    struct ScaledParams {
        rows: u32, cols: u32, blocks: u32, first_row: u32, y_stride: u32, parts: u32, eps: f32,
    }
}

/// The record of [`GemvAdd`].
pub static ADD_KERNEL: Kernel = Kernel {
    name: "gemv_add",
    wgsl: KERNEL.wgsl,
    bindings: &[
        Access::Read,
        Access::Read,
        Access::Read,
        Access::ReadWrite,
        Access::Read,
        Access::ReadWrite,
        Access::ReadWrite,
    ],
    params: GemvParams::LAYOUT,
    cases: add_cases,
};

/// The record of [`GemvScaled`].
pub static SCALED_KERNEL: Kernel = Kernel {
    name: "gemv_scaled",
    wgsl: KERNEL.wgsl,
    bindings: &[Access::Read, Access::Read, Access::Read, Access::ReadWrite, Access::Read],
    params: ScaledParams::LAYOUT,
    cases: scaled_cases,
};

/// The choice of [`GemvAdd`].
pub static ADD_TUNABLE: Tunable = Tunable {
    name: "gemv_add",
    kernel: &ADD_KERNEL,
    extents: &["rows", "cols", "batch"],
    numbers: &NUMBERS,
    candidates: |_, problem| candidates(matrix_format(problem), problem.sizes()[1], 1),
    trial: |caps, problem, choice| {
        let ([rows, cols, ..], format) = (problem.sizes(), matrix_format(problem));
        let shape = Shape::of(choice);
        let lens = [cols, rows, rows, rows, GemvAdd { shape }.parts(rows)];
        Trial {
            case: add_case(caps, shape, format, rows, cols),
            lens: [&matrix_lens(format, rows, cols)[..], &lens].concat(),
            rotated: 0..2,
            check: add_case(caps, shape, format, CHECKED_ROWS, cols),
        }
    },
};

/// The choice of [`GemvScaled`].
pub static SCALED_TUNABLE: Tunable = Tunable {
    name: "gemv_scaled",
    kernel: &SCALED_KERNEL,
    extents: &["rows", "cols", "swiglu"],
    numbers: &NUMBERS,
    candidates: |_, problem| candidates(matrix_format(problem), problem.sizes()[1], 1),
    trial: |caps, problem, choice| {
        let ([rows, cols, swiglu, _], format) = (problem.sizes(), matrix_format(problem));
        let (shape, swiglu) = (Shape::of(choice), swiglu == 1);
        Trial {
            case: scaled_case(caps, shape, format, rows, cols, swiglu),
            lens: [&matrix_lens(format, rows, cols)[..], &[cols, cols.div_ceil(4).next_multiple_of(4), rows]].concat(),
            rotated: 0..2,
            check: scaled_case(caps, shape, format, CHECKED_ROWS, cols, swiglu),
        }
    },
};

impl GemvAdd {
    /// As it is done on a device.
    pub fn of(gpu: &Gpu, w: &Slice) -> GemvAdd {
        GemvAdd { shape: pick(gpu, &ADD_TUNABLE, w, 1) }
    }

    /// Length of `squares` for so many rows.
    pub fn parts(&self, rows: usize) -> usize {
        self.shape.groups(rows)
    }

    /// `w` is a whole matrix. `x`: [w.cols]. `norm`, `sum`, `y`: [w.rows]. `squares`: [`GemvAdd::parts`].
    #[expect(clippy::too_many_arguments, reason = "the buffers of a fused operation")]
    pub fn record(
        &self,
        recorder: &mut Recorder,
        w: &Slice,
        x: &Buffer<f32>,
        norm: &Buffer<f32>,
        sum: &Buffer<f32>,
        y: &Buffer<f32>,
        squares: &Buffer<f32>,
    ) {
        let params = GemvParams::new(w, w.rows);
        let variant = add_variant(recorder.gpu().caps(), self.shape, w.format, w.cols);
        let buffers =
            [(&w.q_weight).into(), (&w.q_scale).into(), x.into(), y.into(), norm.into(), sum.into(), squares.into()];
        recorder.dispatch(&ADD_KERNEL, &variant, &params, &buffers, self.parts(w.rows));
    }
}

impl GemvScaled {
    /// `x`: [w.cols]. `squares`: `[parts]`, in room for whole quads.
    /// `y`: [rows of the whole matrix], with `swiglu` half as many.
    pub fn record(&self, recorder: &mut Recorder, w: &Slice, x: &Buffer<f32>, squares: &Buffer<f32>, y: &Buffer<f32>) {
        let shape = pick(recorder.gpu(), &SCALED_TUNABLE, w, usize::from(self.swiglu));
        self.record_shape(recorder, shape, w, x, squares, y);
    }

    fn record_shape(
        &self,
        recorder: &mut Recorder,
        shape: Shape,
        w: &Slice,
        x: &Buffer<f32>,
        squares: &Buffer<f32>,
        y: &Buffer<f32>,
    ) {
        let params = ScaledParams {
            rows: w.rows as u32,
            cols: w.cols as u32,
            blocks: blocks(w.format, w.cols) as u32,
            first_row: w.first_row as u32,
            y_stride: 0,
            parts: self.parts as u32,
            eps: self.eps,
        };
        let variant = self.variant(recorder.gpu().caps(), shape, w.format, w.cols);
        let buffers = [(&w.q_weight).into(), (&w.q_scale).into(), x.into(), y.into(), squares.into()];
        // With a gate, a workgroup has as many pairs of rows as half of them are.
        let groups = if self.swiglu { (w.rows / 2).div_ceil(shape.rows as usize / 2) } else { shape.groups(w.rows) };
        recorder.dispatch(&SCALED_KERNEL, &variant, &params, &buffers, groups);
    }

    fn variant(&self, caps: &Caps, shape: Shape, format: WeightFormat, cols: usize) -> Variant {
        // A lane that has a block has a quad of parts.
        let is_wide = blocks(format, cols) < self.parts.div_ceil(4);
        let variant = variant(caps, shape, format, cols, 1).flag("EPILOGUE").flag("SCALED");
        variant.flag_if("WIDE_BLOCKS", is_wide).flag_if("SWIGLU", self.swiglu)
    }
}

fn add_variant(caps: &Caps, shape: Shape, format: WeightFormat, cols: usize) -> Variant {
    variant(caps, shape, format, cols, 1).flag("EPILOGUE").flag("ADD")
}

fn add_cases(caps: &Caps, set: CaseSet) -> Vec<Case> {
    let shapes: Vec<(WeightFormat, usize, usize)> = match set {
        CaseSet::Test => {
            let shapes = [(64, 576), (67, 3072), (6, 77), (30, 2048), (20, 100), (5, 8192)];
            all_formats().into_iter().flat_map(|format| shapes.map(|(rows, cols)| (format, rows, cols))).collect()
        }
        CaseSet::Bench => [(3072, 3072), (3072, 8192), (2048, 8192)].map(|(n, k)| (four_bits(), n, k)).into(),
    };
    shapes.into_iter().map(|(format, rows, cols)| own_add_case(caps, format, rows, cols)).collect()
}

pub(super) fn own_add_case(caps: &Caps, format: WeightFormat, rows: usize, cols: usize) -> Case {
    add_case(caps, shape(blocks(format, cols), 1), format, rows, cols)
}

fn add_case(caps: &Caps, shape: Shape, format: WeightFormat, rows: usize, cols: usize) -> Case {
    let add = move || GemvAdd { shape };
    Case {
        label: format!("{rows} x {cols}"),
        variant: add_variant(caps, shape, format, cols),
        flops: 2 * (rows * cols) as u64,
        bytes: (rows * format.blocks(cols) * format.block_bytes() + 4 * (cols + 4 * rows)) as u64,
        tolerance: 1e-10,
        buffers: Box::new(move || {
            let [q_weight, q_scale] = random_matrix(format, rows, cols, cols as u64);
            let mut random = Random::new(rows as u64);
            let (x, norm, sum) = (random.values(cols), random.values(rows), random.values(rows));
            let squares = CaseBuffer::output(add().parts(rows));
            let (x, norm, sum) = (CaseBuffer::input(&x), CaseBuffer::input(&norm), CaseBuffer::in_out(&sum));
            vec![q_weight, q_scale, x, norm, sum, CaseBuffer::output(rows), squares]
        }),
        record: Box::new(move |recorder, b| {
            let w = cases::slice(format, rows, cols, &b[0], &b[1]);
            let [x, norm, sum, y, squares] = [2, 3, 4, 5, 6].map(|i: usize| b[i].cast());
            add().record(recorder, &w, &x, &norm, &sum, &y, &squares);
        }),
        reference: Box::new(move |b| {
            let w = cases::values(format, rows, cols, &b[0].words, &b[1].words);
            let (mut sum, mut y) = (b[4].values().to_vec(), vec![0.0; rows]);
            reference::gemv_add(&w, b[2].values(), b[3].values(), &mut sum, &mut y);
            let squares = sum.chunks(shape.rows as usize).map(|sum| sum.iter().map(|v| v * v).sum()).collect();
            vec![sum, y, squares]
        }),
    }
}

fn scaled_cases(caps: &Caps, set: CaseSet) -> Vec<Case> {
    let shapes: Vec<(WeightFormat, usize, usize, bool)> = match set {
        CaseSet::Test => {
            let shapes = [
                (67, 576, false),
                (64, 576, true),
                (66, 3072, true),
                (30, 8192, false),
                (6, 77, true),
                (30, 2048, true),
                (9, 100, false),
                (20, 100, true),
            ];
            let all = all_formats().into_iter().flat_map(|format| shapes.map(|shape| (format, shape)));
            all.map(|(format, (rows, cols, swiglu))| (format, rows, cols, swiglu)).collect()
        }
        CaseSet::Bench => {
            let shapes = [(5120, 3072, false), (16_384, 3072, true), (16_384, 2048, true), (128_256, 3072, false)];
            shapes.map(|(rows, cols, swiglu)| (four_bits(), rows, cols, swiglu)).into()
        }
    };
    shapes.into_iter().map(|(format, rows, cols, swiglu)| own_scaled_case(caps, format, rows, cols, swiglu)).collect()
}

pub(super) fn own_scaled_case(caps: &Caps, format: WeightFormat, rows: usize, cols: usize, swiglu: bool) -> Case {
    scaled_case(caps, shape(blocks(format, cols), 1), format, rows, cols, swiglu)
}

fn scaled_case(caps: &Caps, shape: Shape, format: WeightFormat, rows: usize, cols: usize, swiglu: bool) -> Case {
    // As a product of as many outputs leaves them.
    let parts = cols.div_ceil(4);
    let scaled = move || GemvScaled { parts, eps: 1e-5, swiglu };
    let outputs = if swiglu { rows / 2 } else { rows };
    Case {
        label: format!("{rows} x {cols}"),
        variant: scaled().variant(caps, shape, format, cols),
        flops: 2 * (rows * cols) as u64,
        bytes: (rows * format.blocks(cols) * format.block_bytes() + 4 * (cols + outputs)) as u64,
        tolerance: 1e-10,
        buffers: Box::new(move || {
            let [q_weight, q_scale] = random_matrix(format, rows, cols, cols as u64);
            let mut random = Random::new(rows as u64);
            let (x, squares) = (random.values(cols), random.values(parts));
            let mut squares: Vec<f32> = squares.iter().map(|v| v * v).collect();
            squares.resize(parts.next_multiple_of(4), f32::NAN);
            let output = CaseBuffer::output(outputs);
            vec![q_weight, q_scale, CaseBuffer::input(&x), CaseBuffer::input(&squares), output]
        }),
        record: Box::new(move |recorder, b| {
            let w = cases::slice(format, rows, cols, &b[0], &b[1]);
            scaled().record_shape(recorder, shape, &w, &b[2].cast(), &b[3].cast(), &b[4].cast());
        }),
        reference: Box::new(move |b| {
            let w = cases::values(format, rows, cols, &b[0].words, &b[1].words);
            let mut y = vec![0.0; rows];
            reference::gemv_scaled(&w, b[2].values(), &b[3].values()[..parts], 1e-5, &mut y);
            if swiglu {
                let mut activated = vec![0.0; outputs];
                crate::glu::glu(&y, Activation::Silu, outputs, &mut activated);
                y = activated;
            }
            vec![y]
        }),
    }
}
