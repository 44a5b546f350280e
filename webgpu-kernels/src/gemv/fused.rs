//! One row times a weight matrix, fused with adjacent operations of a decoder. [`GemvAdd`] ends a block of the residual stream,
//! [`GemvScaled`] starts the next.
//!
//! RMSNorm between them needs the mean square of the whole row, but a workgroup of [`GemvAdd`] has only some of its values. So
//! [`GemvAdd`] multiplies by the norm's weights and stores one partial sum of squares per workgroup. [`GemvScaled`] adds the
//! partial sums and divides its outputs by the RMS.

use model_format::decoder_config::Activation;

use super::{
    GemvKind, GemvParams, GemvShape, candidates, default_choice, odd_choices, reference, shape_of, trial, tuned_choice,
};
use crate::{
    Case, CaseSet, Kernel, WeightFormat,
    cases::{self, Random, all_formats, four_bits, random_matrix},
    gpu::{Buffer, Caps, Gpu, Recorder},
    kernel::{Access, CaseBuffer, Params, params},
    matrix::Slice,
    tuning::{GemvChoice, Tunable},
};

/// `sum[n] += sum over k of x[k] * w[n, k]`, then `y[n] = sum[n] * norm[n]`. `squares` gets partial sums of `sum[n]^2`.
pub struct GemvAdd {
    choice: GemvChoice,
}

/// `y[n] = sum over k of x[k] / sqrt(total of squares / cols + eps) * w[n, k]`. With `swiglu`, the output is
/// `silu(y[i]) * y[rows / 2 + i]`.
pub struct GemvScaled {
    /// Partial sums in `squares`.
    pub parts: usize,
    /// Added to the mean square before the square root.
    pub eps: f32,
    /// True if the rows of `w` are a gate's, followed by as many of the gated projection. Such a matrix has one slice.
    pub swiglu: bool,
}

params! {
    struct ScaledParams {
        rows: u32, cols: u32, blocks: u32, first_row: u32, parts: u32, eps: f32,
    }
}

/// The record of [`GemvAdd`].
pub static ADD_KERNEL: Kernel = Kernel {
    name: "gemv_add",
    wgsl: include_str!("gemv_add.wgsl"),
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
    has_substitute: true,
    ..Kernel::DEFAULTS
};

/// The record of [`GemvScaled`].
pub static SCALED_KERNEL: Kernel = Kernel {
    name: "gemv_scaled",
    wgsl: include_str!("gemv_scaled.wgsl"),
    bindings: &[Access::Read, Access::Read, Access::Read, Access::ReadWrite, Access::Read],
    params: ScaledParams::LAYOUT,
    cases: scaled_cases,
    has_substitute: true,
    ..Kernel::DEFAULTS
};

/// The tunable of [`GemvAdd`].
pub static ADD_TUNABLE: Tunable = Tunable {
    name: "gemv_add",
    kernel: |_| &ADD_KERNEL,
    extents: &["rows", "cols", "batch"],
    candidates: |caps, problem| candidates(caps, &shape_of(problem, GemvKind::Add)),
    trial: |caps, problem, choice| {
        let GemvShape { rows, cols, .. } = shape_of(problem, GemvKind::Add);
        let parts = GemvAdd { choice: choice.get() }.parts(caps, rows);
        trial(caps, problem, GemvKind::Add, choice, &[cols, rows, rows, rows, parts])
    },
};

/// The tunable of [`GemvScaled`].
pub static SCALED_TUNABLE: Tunable = Tunable {
    name: "gemv_scaled",
    kernel: |_| &SCALED_KERNEL,
    extents: &["rows", "cols", "swiglu"],
    candidates: |caps, problem| candidates(caps, &shape_of(problem, scaled_kind(problem.sizes()[2] == 1))),
    trial: |caps, problem, choice| {
        let kind = scaled_kind(problem.sizes()[2] == 1);
        let GemvShape { format, rows, cols, .. } = shape_of(problem, kind);
        let parts = default_parts(caps, format, cols).next_multiple_of(4);
        trial(caps, problem, kind, choice, &[cols, parts, rows])
    },
};

fn scaled_kind(swiglu: bool) -> GemvKind {
    if swiglu { GemvKind::Swiglu } else { GemvKind::Scaled }
}

/// Partial sums of squares of a row, as [`GemvAdd`] leaves them for a square matrix by default.
pub(super) fn default_parts(caps: &Caps, format: WeightFormat, cols: usize) -> usize {
    GemvAdd { choice: default_choice(caps, &GemvAdd::shape(format, cols, cols)) }.parts(caps, cols)
}

impl GemvAdd {
    /// With the device's choice.
    pub fn of(gpu: &Gpu, w: &Slice) -> GemvAdd {
        GemvAdd { choice: tuned_choice(gpu, &GemvAdd::shape(w.format, w.rows, w.cols)) }
    }

    fn shape(format: WeightFormat, rows: usize, cols: usize) -> GemvShape {
        GemvShape { format, rows, cols, batch: 1, kind: GemvKind::Add }
    }

    /// Length of `squares` for this many rows.
    pub fn parts(&self, caps: &Caps, rows: usize) -> usize {
        rows.div_ceil(self.choice.workgroup_rows(caps))
    }

    /// `w`: a whole matrix. `x`: [w.cols]. `norm`, `sum`, `y`: [w.rows]. `squares`: [`GemvAdd::parts`].
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
        let (caps, shape) = (*recorder.gpu().caps(), GemvAdd::shape(w.format, w.rows, w.cols));
        let params = GemvParams::new(w, w.rows, shape.blocks(&self.choice));
        let buffers =
            [(&w.q_weight).into(), (&w.q_scale).into(), x.into(), y.into(), norm.into(), sum.into(), squares.into()];
        let variant = self.choice.variant(&caps, &shape, 0);
        recorder.dispatch(&ADD_KERNEL, &variant, &params, &buffers, self.parts(&caps, w.rows));
    }
}

impl GemvScaled {
    fn shape(&self, format: WeightFormat, rows: usize, cols: usize) -> GemvShape {
        GemvShape { format, rows, cols, batch: 1, kind: scaled_kind(self.swiglu) }
    }

    /// `x`: [w.cols]. `squares`: `[parts]`, padded to a multiple of four values. `y`: [rows of the whole matrix], with `swiglu`
    /// half as many.
    pub fn record(&self, recorder: &mut Recorder, w: &Slice, x: &Buffer<f32>, squares: &Buffer<f32>, y: &Buffer<f32>) {
        let choice = tuned_choice(recorder.gpu(), &self.shape(w.format, w.rows, w.cols));
        self.record_choice(recorder, choice, w, x, squares, y);
    }

    fn record_choice(
        &self,
        recorder: &mut Recorder,
        choice: GemvChoice,
        w: &Slice,
        x: &Buffer<f32>,
        squares: &Buffer<f32>,
        y: &Buffer<f32>,
    ) {
        let (caps, shape) = (*recorder.gpu().caps(), self.shape(w.format, w.rows, w.cols));
        let params = ScaledParams {
            rows: w.rows as u32,
            cols: w.cols as u32,
            blocks: shape.blocks(&choice) as u32,
            first_row: w.first_row as u32,
            parts: self.parts as u32,
            eps: self.eps,
        };
        let buffers = [(&w.q_weight).into(), (&w.q_scale).into(), x.into(), y.into(), squares.into()];
        let groups = w.rows.div_ceil(choice.workgroup_rows(&caps));
        recorder.dispatch(&SCALED_KERNEL, &choice.variant(&caps, &shape, self.parts), &params, &buffers, groups);
    }
}

fn add_cases(caps: &Caps, set: CaseSet) -> Vec<Case> {
    let shapes: Vec<(WeightFormat, usize, usize)> = match set {
        CaseSet::Test => {
            let shapes = [(64, 576), (67, 3072), (6, 77), (30, 2048), (20, 100), (5, 8192)];
            all_formats().into_iter().flat_map(|format| shapes.map(|(rows, cols)| (format, rows, cols))).collect()
        }
        CaseSet::Bench => [(3072, 3072), (3072, 8192), (2048, 8192)].map(|(n, k)| (four_bits(), n, k)).into(),
    };
    let default = |(format, rows, cols)| {
        let choice = default_choice(caps, &GemvAdd::shape(format, rows, cols));
        add_case(caps, format, rows, cols, choice)
    };
    let odd = if set == CaseSet::Test { odd_choices(caps, GemvKind::Add) } else { Vec::new() };
    let odd = odd.into_iter().map(|(of, choice)| add_case(caps, of.format, of.rows, of.cols, choice));
    shapes.into_iter().map(default).chain(odd).collect()
}

pub(super) fn add_case(caps: &Caps, format: WeightFormat, rows: usize, cols: usize, choice: GemvChoice) -> Case {
    let group_rows = choice.workgroup_rows(caps);
    Case {
        label: format!("{rows} x {cols}"),
        variant: choice.variant(caps, &GemvAdd::shape(format, rows, cols), 0),
        flops: 2 * (rows * cols) as u64,
        bytes: (rows * format.blocks(cols) * format.block_bytes() + 4 * (cols + 4 * rows)) as u64,
        tolerance: choice.tolerance(),
        buffers: Box::new(move || {
            let [q_weight, q_scale] = random_matrix(format, rows, cols, cols as u64);
            let mut random = Random::new(rows as u64);
            let (x, norm, sum) = (random.values(cols), random.values(rows), random.values(rows));
            let squares = CaseBuffer::output(rows.div_ceil(group_rows));
            let (x, norm, sum) = (CaseBuffer::input(&x), CaseBuffer::input(&norm), CaseBuffer::in_out(&sum));
            vec![q_weight, q_scale, x, norm, sum, CaseBuffer::output(rows), squares]
        }),
        record: Box::new(move |recorder, b| {
            let w = cases::slice(format, rows, cols, &b[0], &b[1]);
            let [x, norm, sum, y, squares] = [2, 3, 4, 5, 6].map(|i: usize| b[i].cast());
            GemvAdd { choice }.record(recorder, &w, &x, &norm, &sum, &y, &squares);
        }),
        reference: Box::new(move |b| {
            let w = cases::values(format, rows, cols, &b[0].words, &b[1].words);
            let (mut sum, mut y) = (b[4].values().to_vec(), vec![0.0; rows]);
            reference::gemv_add(&w, b[2].values(), b[3].values(), &mut sum, &mut y);
            let squares = sum.chunks(group_rows).map(|sum| sum.iter().map(|v| v * v).sum()).collect();
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
    let default = |(format, rows, cols, swiglu): (WeightFormat, usize, usize, bool)| {
        let shape = GemvShape { format, rows, cols, batch: 1, kind: scaled_kind(swiglu) };
        scaled_case(caps, &shape, default_choice(caps, &shape))
    };
    let kinds = [GemvKind::Scaled, GemvKind::Swiglu];
    let odd = if set == CaseSet::Test { kinds.map(|kind| odd_choices(caps, kind)).concat() } else { Vec::new() };
    let odd = odd.into_iter().map(|(shape, choice)| scaled_case(caps, &shape, choice));
    shapes.into_iter().map(default).chain(odd).collect()
}

/// Partial sums of squares, padded with NaN to a multiple of four.
pub(super) fn random_squares(random: &mut Random, parts: usize) -> CaseBuffer {
    let mut squares: Vec<f32> = random.values(parts).iter().map(|v| v * v).collect();
    squares.resize(parts.next_multiple_of(4), f32::NAN);
    CaseBuffer::input(&squares)
}

pub(super) fn scaled_case(caps: &Caps, shape: &GemvShape, choice: GemvChoice) -> Case {
    let GemvShape { format, rows, cols, kind, .. } = *shape;
    let swiglu = kind == GemvKind::Swiglu;
    let parts = default_parts(caps, format, cols);
    let scaled = move || GemvScaled { parts, eps: 1e-5, swiglu };
    let outputs = if swiglu { rows / 2 } else { rows };
    Case {
        label: format!("{rows} x {cols}"),
        variant: choice.variant(caps, shape, parts),
        flops: 2 * (rows * cols) as u64,
        bytes: (rows * format.blocks(cols) * format.block_bytes() + 4 * (cols + outputs)) as u64,
        tolerance: choice.tolerance(),
        buffers: Box::new(move || {
            let [q_weight, q_scale] = random_matrix(format, rows, cols, cols as u64);
            let mut random = Random::new(rows as u64);
            let (x, squares) = (CaseBuffer::input(&random.values(cols)), random_squares(&mut random, parts));
            vec![q_weight, q_scale, x, squares, CaseBuffer::output(outputs)]
        }),
        record: Box::new(move |recorder, b| {
            let w = cases::slice(format, rows, cols, &b[0], &b[1]);
            scaled().record_choice(recorder, choice, &w, &b[2].cast(), &b[3].cast(), &b[4].cast());
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
