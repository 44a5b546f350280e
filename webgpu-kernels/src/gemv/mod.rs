//! `y[m, n] = sum over k of x[m, k] * w[n, k]` for 1 to [`MAX_BATCH`] rows m: decoding.
//!
//! The kernel is bound by memory bandwidth, so it keeps many loads of `w` in flight. Neighboring lanes read neighboring blocks.
//! Thus a subgroup reads whole cache lines of `w`, and mostly whole lines of `x`. A [`GemvChoice`] divides the work among lanes;
//! `choice.rs` has the default and the candidates.
//!
//! `fused.rs` adds the residual stream, norm and gate; `rope.rs` rotates queries and keys and stores keys and values. The shaders
//! share the files in `pieces/`, which `crate::source` inserts: declarations by `#import`, statements by `#include`.

mod choice;
mod fused;
mod outliers;
pub(crate) mod reference;
mod rope;

use crate::{
    Case, CaseSet, Kernel, WeightFormat,
    cases::{all_formats, four_bits},
    gpu::{Buffer, Caps, Gpu, Recorder},
    kernel::{Access, Params, params},
    matrix::Slice,
    tuning::{Choice, GemvChoice, Problem, Team, Trial, Tunable},
};

use choice::default_choice;
pub use choice::{GemvKind, GemvShape, choices};
pub use fused::{ADD_KERNEL, ADD_TUNABLE, GemvAdd, GemvScaled, SCALED_KERNEL, SCALED_TUNABLE};
pub(crate) use outliers::case_beside_outliers;
pub use reference::{gemv, gemv_add, gemv_scaled};
pub(crate) use rope::case_of as turned_case_of;
pub use rope::{GemvRope, KERNEL as ROPE_KERNEL, TUNABLE as ROPE_TUNABLE};

/// Most rows of `x`.
pub const MAX_BATCH: usize = 8;

/// `y[m, n] = sum over k of x[m, k] * w[n, k]`.
pub struct Gemv {
    /// Rows of `x`, M: 1 to [`MAX_BATCH`].
    pub batch: usize,
    /// Columns of `y`: the rows of the whole matrix, of which `w` may be a slice.
    pub y_stride: usize,
}

params! { struct GemvParams { rows: u32, cols: u32, blocks: u32, first_row: u32, y_stride: u32 } }

impl GemvParams {
    fn new(w: &Slice, y_stride: usize, blocks: usize) -> GemvParams {
        GemvParams {
            rows: w.rows as u32,
            cols: w.cols as u32,
            blocks: blocks as u32,
            first_row: w.first_row as u32,
            y_stride: y_stride as u32,
        }
    }
}

/// The kernel's record.
pub static KERNEL: Kernel = Kernel {
    name: "gemv",
    wgsl: include_str!("gemv.wgsl"),
    bindings: &[Access::Read, Access::Read, Access::Read, Access::ReadWrite],
    params: GemvParams::LAYOUT,
    cases,
    ..Kernel::DEFAULTS
};

/// The tunable of this kernel.
pub static TUNABLE: Tunable = Tunable {
    name: "gemv",
    kernel: |_| &KERNEL,
    extents: &["rows", "cols", "batch"],
    candidates: |caps, problem| candidates(caps, &shape_of(problem, GemvKind::Plain)),
    trial: |caps, problem, choice| {
        let GemvShape { rows, cols, batch, .. } = shape_of(problem, GemvKind::Plain);
        trial(caps, problem, GemvKind::Plain, choice, &[batch * cols, batch * rows])
    },
};

/// Rows and columns of the matrices of a layer of Llama 3.2 3B, for benchmarks.
pub(crate) const LAYER: [(usize, usize); 4] = [(5120, 3072), (3072, 3072), (16_384, 3072), (3072, 8192)];

/// Rows of the matrices in checks. `CHECKED_ROWS` is no multiple of a workgroup's rows. `CHECKED_HEADS` is one of a head's.
const CHECKED_ROWS: usize = 10;
const CHECKED_HEADS: usize = 40;

/// The shape of a problem of this folder. Its extents are rows, columns and, for some kinds, a third.
fn shape_of(problem: &Problem, kind: GemvKind) -> GemvShape {
    let [rows, cols, last, ..] = problem.sizes();
    let batch = if kind == GemvKind::Plain { last } else { 1 };
    GemvShape { format: problem.format.expect("a matrix has a format"), rows, cols, batch, kind }
}

/// The candidates of autotuning.
fn candidates(caps: &Caps, shape: &GemvShape) -> Vec<Choice> {
    choice::candidates(caps, shape).into_iter().map(Choice::from).collect()
}

/// A problem under one choice. `lens`: words of the buffers after the matrix.
fn trial(caps: &Caps, problem: &Problem, kind: GemvKind, choice: Choice, lens: &[usize]) -> Trial {
    let (shape, choice) = (shape_of(problem, kind), choice.get::<GemvChoice>());
    let rows = if kind == GemvKind::Rope { CHECKED_HEADS } else { CHECKED_ROWS };
    Trial {
        case: choice_case(caps, &shape, choice),
        lens: [&matrix_lens(shape.format, shape.rows, shape.cols)[..], lens].concat(),
        rotated: vec![0, 1],
        checks: vec![choice_case(caps, &GemvShape { rows, ..shape }, choice)],
    }
}

/// Words of a matrix and of its scales.
pub(crate) fn matrix_lens(format: WeightFormat, rows: usize, cols: usize) -> [usize; 2] {
    // Without scales, any buffer is bound.
    [rows * format.row_words(cols), (rows * format.row_scales(cols)).div_ceil(2).max(4)]
}

/// The device's choice.
fn tuned_choice(gpu: &Gpu, shape: &GemvShape) -> GemvChoice {
    let GemvShape { format, rows, cols, batch, kind } = *shape;
    let problem = match kind {
        GemvKind::Plain => Problem::new(&TUNABLE, Some(format), [rows, cols, batch]),
        GemvKind::Add => Problem::new(&ADD_TUNABLE, Some(format), [rows, cols, 1]),
        GemvKind::Scaled => Problem::new(&SCALED_TUNABLE, Some(format), [rows, cols, 0]),
        GemvKind::Swiglu => Problem::new(&SCALED_TUNABLE, Some(format), [rows, cols, 1]),
        GemvKind::Rope => Problem::new(&ROPE_TUNABLE, Some(format), [rows, cols]),
    };
    gpu.choice(problem).get()
}

impl Gemv {
    /// `x`: [batch, w.cols]. `y`: [batch, y_stride].
    pub fn record(&self, recorder: &mut Recorder, w: &Slice, x: &Buffer<f32>, y: &Buffer<f32>) {
        let shape = self.shape(w);
        let choice = tuned_choice(recorder.gpu(), &shape);
        self.record_choice(recorder, choice, w, x, y);
    }

    fn shape(&self, w: &Slice) -> GemvShape {
        GemvShape { format: w.format, rows: self.y_stride, cols: w.cols, batch: self.batch, kind: GemvKind::Plain }
    }

    fn record_choice(&self, recorder: &mut Recorder, choice: GemvChoice, w: &Slice, x: &Buffer<f32>, y: &Buffer<f32>) {
        assert!((1..=MAX_BATCH).contains(&self.batch), "gemv: batch must be 1 to {MAX_BATCH}, not {}", self.batch);
        let (caps, shape) = (*recorder.gpu().caps(), self.shape(w));
        let params = GemvParams::new(w, self.y_stride, shape.blocks(&choice));
        let buffers = [(&w.q_weight).into(), (&w.q_scale).into(), x.into(), y.into()];
        let groups = w.rows.div_ceil(choice.workgroup_rows(&caps));
        recorder.dispatch(&KERNEL, &choice.variant(&caps, &shape, 0), &params, &buffers, groups);
    }
}

fn cases(caps: &Caps, set: CaseSet) -> Vec<Case> {
    let (q4, f16) = (four_bits(), WeightFormat::F16);
    match set {
        CaseSet::Test => {
            let shapes = [
                (1, 64, 576),
                (1, 67, 1536),
                (1, 30, 2048),
                (1, 33, 3072),
                (1, 16, 8192),
                (1, 1, 32),
                (1, 7, 4),
                (1, 5, 100),
                (1, 5, 77),
                (2, 67, 576),
                (2, 4, 32),
                (3, 9, 77),
                (4, 30, 576),
                (5, 30, 3072),
                (6, 3, 160),
                (7, 11, 320),
                (8, 19, 2048),
                (8, 5, 100),
                (1, 9, 576),
                (1, 130, 2048),
                (4, 3, 576),
            ];
            let all = all_formats().into_iter().flat_map(|format| shapes.map(|shape| (format, shape)));
            let odd = [odd_choices(caps, GemvKind::Plain), odd_batches(caps)].concat();
            let odd = odd.into_iter().map(|(shape, choice)| choice_case(caps, &shape, choice));
            all.map(|(format, (batch, rows, cols))| case(caps, format, batch, rows, cols)).chain(odd).collect()
        }
        CaseSet::Bench => {
            let few = [(128_256, 3072), (1024, 3072), (576, 576)].map(|(rows, cols)| (q4, 1, rows, cols));
            let layer = [1, 2, 4, 8].into_iter().flat_map(|batch| LAYER.map(|(rows, cols)| (q4, batch, rows, cols)));
            let all = layer.chain(few).chain([(f16, 1, 16_384, 3072)]);
            all.map(|(format, batch, rows, cols)| case(caps, format, batch, rows, cols)).collect()
        }
    }
}

/// Small cases of this folder's kernels for a model's matrices with `cols` columns.
pub(crate) fn cases_of(caps: &Caps, format: WeightFormat, cols: usize) -> Vec<(&'static Kernel, Case)> {
    let of = |kind, batch| GemvShape { format, rows: 10, cols, batch, kind };
    // Short prompts and prompt lookup.
    let mut cases: Vec<_> = (2..=MAX_BATCH).map(|batch| (&KERNEL, case(caps, format, batch, 10, cols))).collect();
    for kind in [GemvKind::Plain, GemvKind::Add, GemvKind::Scaled, GemvKind::Swiglu] {
        let shape = of(kind, 1);
        cases.push((kernel_of(kind), choice_case(caps, &shape, default_choice(caps, &shape))));
    }
    cases
}

/// The variant of [`GemvAdd`] by default.
pub(crate) fn default_variant(caps: &Caps, rows: usize, cols: usize) -> crate::Variant {
    let shape = GemvShape { format: four_bits(), rows, cols, batch: 1, kind: GemvKind::Add };
    default_choice(caps, &shape).variant(caps, &shape, 0)
}

/// The kernel of a kind.
pub fn kernel_of(kind: GemvKind) -> &'static Kernel {
    match kind {
        GemvKind::Plain => &KERNEL,
        GemvKind::Add => &ADD_KERNEL,
        GemvKind::Scaled | GemvKind::Swiglu => &SCALED_KERNEL,
        GemvKind::Rope => &ROPE_KERNEL,
    }
}

/// A shape under one of its [`choices`], as a case for benchmarks.
pub fn choice_case(caps: &Caps, shape: &GemvShape, choice: GemvChoice) -> Case {
    let GemvShape { format, rows, cols, batch, kind } = *shape;
    match kind {
        GemvKind::Plain => {
            let variant = choice.variant(caps, shape, 0);
            let extents = [batch, rows, cols];
            let case = case_beside_outliers(variant, format, extents, !choice.integer, move |recorder, w, x, y| {
                Gemv { batch, y_stride: rows }.record_choice(recorder, choice, w, x, y);
            });
            Case { tolerance: choice.tolerance(), ..case }
        }
        GemvKind::Add => fused::add_case(caps, format, rows, cols, choice),
        GemvKind::Scaled | GemvKind::Swiglu => fused::scaled_case(caps, shape, choice),
        GemvKind::Rope => rope::case(caps, rope::Shape::of(rows, cols, format), choice, crate::KvDtype::F16),
    }
}

fn case(caps: &Caps, format: WeightFormat, batch: usize, rows: usize, cols: usize) -> Case {
    let shape = GemvShape { format, rows, cols, batch, kind: GemvKind::Plain };
    choice_case(caps, &shape, default_choice(caps, &shape))
}

/// Choices that no default takes, each with a small shape, so that tests cover them.
fn odd_choices(caps: &Caps, kind: GemvKind) -> Vec<(GemvShape, GemvChoice)> {
    let choice = |workgroup, team, rows, steps, lanes_per_group, shared_x| GemvChoice {
        workgroup,
        steps,
        rows,
        lanes_per_group,
        team,
        shared_x,
        integer: false,
    };
    let integer = |choice| GemvChoice { integer: true, ..choice };
    let all = [
        (576, choice(64, Team::Subgroup, 4, 1, 2, false)),
        (3072, choice(128, Team::Subgroup, 8, 2, 2, true)),
        (2048, choice(256, Team::Subgroup, 4, 2, 1, false)),
        (3072, choice(96, Team::Workgroup, 8, 1, 1, false)),
        (8192, choice(256, Team::Workgroup, 4, 2, 4, false)),
        (576, choice(64, Team::Subgroup, 4, 3, 4, true)),
        (2048, choice(64, Team::Workgroup, 8, 2, 2, true)),
        (576, integer(choice(64, Team::Subgroup, 4, 1, 2, false))),
        (3072, integer(choice(96, Team::Workgroup, 8, 1, 1, false))),
        (8192, integer(choice(256, Team::Workgroup, 4, 2, 4, false))),
        (100, integer(choice(64, Team::Workgroup, 4, 1, 1, false))),
    ];
    let shapes = all.into_iter().enumerate().map(|(i, (cols, choice))| {
        let rows = if kind == GemvKind::Rope {
            512
        } else {
            [67, 64, 30][i % 3] & if kind == GemvKind::Swiglu { !1 } else { !0 }
        };
        (GemvShape { format: four_bits(), rows, cols, batch: 1, kind }, choice)
    });
    shapes.filter(|(shape, choice)| choice.is_allowed(caps, shape)).collect()
}

/// Choices for several rows that no default takes, each with a small shape.
fn odd_batches(caps: &Caps) -> Vec<(GemvShape, GemvChoice)> {
    let choice = |workgroup, team, rows, integer| GemvChoice {
        workgroup,
        steps: 1,
        rows,
        lanes_per_group: 2,
        team,
        shared_x: false,
        integer,
    };
    let all = [
        (2, 576, choice(64, Team::Workgroup, 8, true)),
        (3, 100, choice(32, Team::Workgroup, 4, true)),
        (8, 2048, choice(64, Team::Workgroup, 4, true)),
        (5, 77, choice(96, Team::Workgroup, 2, true)),
        (2, 3072, choice(32, Team::Workgroup, 4, false)),
        (3, 576, choice(64, Team::Workgroup, 8, false)),
        (4, 3072, choice(128, Team::Workgroup, 8, false)),
        (2, 2048, choice(64, Team::Subgroup, 4, false)),
        (4, 1536, choice(64, Team::Subgroup, 8, false)),
        (2, 96, choice(64, Team::Subgroup, 2, true)),
    ];
    let shapes = all.into_iter().enumerate().map(|(i, (batch, cols, choice))| {
        let rows = [67, 64, 30][i % 3];
        (GemvShape { format: four_bits(), rows, cols, batch, kind: GemvKind::Plain }, choice)
    });
    shapes.filter(|(shape, choice)| choice.is_allowed(caps, shape)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workgroups_fit_the_rows_of_real_models() {
        let shapes = [(576, (32, 2)), (2048, (64, 2)), (3072, (96, 2)), (4096, (128, 2)), (8192, (256, 2))];
        let of = |cols, batch| {
            let shape = GemvShape { format: four_bits(), rows: 64, cols, batch, kind: GemvKind::Plain };
            let choice = default_choice(&Caps::WEBGPU_DEFAULTS, &shape);
            (choice.workgroup, choice.steps)
        };
        for (cols, expected) in shapes {
            assert_eq!(of(cols, 1), expected, "{cols}");
        }
        assert_eq!(of(3072, 4), (64, 1));
    }

    #[test]
    fn every_choice_is_allowed_and_the_default_is_first() {
        let subgroups =
            |min, max| Caps { subgroups: Some(crate::gpu::SubgroupSizes { min, max }), ..Caps::WEBGPU_DEFAULTS };
        for caps in [Caps::WEBGPU_DEFAULTS, subgroups(32, 32), subgroups(8, 32)] {
            for kind in [GemvKind::Plain, GemvKind::Add, GemvKind::Scaled, GemvKind::Swiglu, GemvKind::Rope] {
                let shape = GemvShape { format: four_bits(), rows: 3072, cols: 3072, batch: 1, kind };
                let all = choices(&caps, &shape);
                assert_eq!(all[0], default_choice(&caps, &shape));
                assert!(all.len() > 20 && all.iter().all(|choice| choice.is_allowed(&caps, &shape)), "{kind:?}");
                assert_eq!(all.iter().any(|choice| choice.team == Team::Subgroup), caps.subgroups.is_some());
            }
        }
    }
}
