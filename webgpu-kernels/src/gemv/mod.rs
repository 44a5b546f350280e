//! `y[m, n] = sum over k of x[m, k] * w[n, k]` for one row m, and for up to [`MAX_BATCH`]: decoding.
//!
//! Bound by the memory that `w` is read from: what counts is how many bytes are on their way at a time. Neighbouring
//! lanes read neighbouring parts of a block, so that a subgroup reads whole lines of `w` and nearly so of `x`. Choices:
//! - `WORKGROUP`, `STEPS` and `ROWS`: `candidates` lists them, `pick` takes one. A row's blocks are as many as lanes have
//!   room for, or the workgroup goes along the row.
//! - `subgroups`: the sum over lanes within a subgroup needs no memory.
//! - `ragged`: rows of `x` that are no multiple of four values long.
//!
//! `fused.rs` does the same for one row together with what comes before and after it in a decoder.

mod fused;
mod reference;

use crate::{
    Case, CaseSet, Kernel, Variant, WeightFormat,
    cases::{all_formats, four_bits},
    gemm::case_with,
    gpu::{Buffer, Caps, Gpu, Recorder},
    kernel::{Access, Params, params},
    matrix::Slice,
    tuning::{Choice, Problem, Trial, Tunable},
};

pub use fused::{ADD_KERNEL, ADD_TUNABLE, GemvAdd, GemvScaled, SCALED_KERNEL, SCALED_TUNABLE};
pub use reference::{gemv, gemv_add, gemv_scaled};

/// Most rows of `x`.
pub const MAX_BATCH: usize = 8;

/// `y[m, n] = sum over k of x[m, k] * w[n, k]`.
pub struct Gemv {
    /// Rows of `x`, M: 1 to [`MAX_BATCH`].
    pub batch: usize,
    /// Columns of `y`: rows of the whole matrix, where `w` is a slice of one.
    pub y_stride: usize,
}

params! { struct GemvParams { rows: u32, cols: u32, blocks: u32, first_row: u32, y_stride: u32 } }

impl GemvParams {
    fn new(w: &Slice, y_stride: usize) -> GemvParams {
        GemvParams {
            rows: w.rows as u32,
            cols: w.cols as u32,
            blocks: blocks(w.format, w.cols) as u32,
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
};

/// The choice of this kernel.
pub static TUNABLE: Tunable = Tunable {
    name: "gemv",
    kernel: &KERNEL,
    extents: &["rows", "cols", "batch"],
    numbers: &NUMBERS,
    candidates: |_, problem| {
        let [_, cols, batch, _] = problem.sizes();
        candidates(matrix_format(problem), cols, batch)
    },
    trial: |caps, problem, choice| {
        let ([rows, cols, batch, _], format) = (problem.sizes(), matrix_format(problem));
        let shape = Shape::of(choice);
        Trial {
            case: case(caps, shape, format, batch, rows, cols),
            lens: [&matrix_lens(format, rows, cols)[..], &[batch * cols, batch * rows]].concat(),
            rotated: 0..2,
            check: case(caps, shape, format, batch, CHECKED_ROWS, cols),
        }
    },
};

/// Names of a [`Shape`]'s numbers.
const NUMBERS: [&str; 3] = ["workgroup", "steps", "rows"];
/// Rows of a small matrix: no multiple of what a workgroup has.
const CHECKED_ROWS: usize = 10;

/// How a matrix is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    /// Lanes.
    workgroup: u32,
    /// Blocks of a lane at a time.
    steps: u32,
    /// Outputs of a workgroup, an even number.
    rows: u32,
}

impl Shape {
    fn of(Choice([workgroup, steps, rows, _]): Choice) -> Shape {
        Shape { workgroup, steps, rows }
    }

    /// Workgroups for so many outputs.
    fn groups(&self, outputs: usize) -> usize {
        outputs.div_ceil(self.rows as usize)
    }
}

impl Gemv {
    /// `x`: [batch, w.cols]. `y`: [batch, y_stride].
    pub fn record(&self, recorder: &mut Recorder, w: &Slice, x: &Buffer<f32>, y: &Buffer<f32>) {
        self.record_shape(recorder, pick(recorder.gpu(), &TUNABLE, w, self.batch), w, x, y);
    }

    fn record_shape(&self, recorder: &mut Recorder, shape: Shape, w: &Slice, x: &Buffer<f32>, y: &Buffer<f32>) {
        assert!((1..=MAX_BATCH).contains(&self.batch), "gemv: batch must be 1 to {MAX_BATCH}, got {}", self.batch);
        let variant = variant(recorder.gpu().caps(), shape, w.format, w.cols, self.batch);
        let params = GemvParams::new(w, self.y_stride);
        let buffers = [(&w.q_weight).into(), (&w.q_scale).into(), x.into(), y.into()];
        recorder.dispatch(&KERNEL, &variant, &params, &buffers, shape.groups(w.rows));
    }
}

/// How one of this folder's kernels divides a matrix on a device. `last`: the problem's third extent.
fn pick(gpu: &Gpu, tunable: &'static Tunable, w: &Slice, last: usize) -> Shape {
    Shape::of(gpu.choice(Problem::new(tunable, Some(w.format), [w.rows, w.cols, last])))
}

/// The ways to divide rows of so many inputs, the one first that was measured on an H200. More rows of `x` have no registers
/// for more blocks, and no workgroup memory for more lanes.
fn candidates(format: WeightFormat, cols: usize, batch: usize) -> Vec<Choice> {
    let blocks = blocks(format, cols);
    let own = shape(blocks, batch);
    let mut shapes = vec![own];
    if batch == 1 {
        let lanes = |steps: u32| blocks.div_ceil(steps as usize).next_multiple_of(32).min(256) as u32;
        for (steps, rows) in [(2, 2), (1, 4), (4, 4), (1, 2), (1, 8), (2, 8)] {
            shapes.push(Shape { workgroup: lanes(steps), steps, rows });
        }
        for workgroup in [own.workgroup / 2, own.workgroup / 4].map(|lanes| lanes.next_multiple_of(32)) {
            shapes.extend([Shape { workgroup, ..own }, Shape { workgroup, steps: 1, rows: 4 }]);
        }
    }
    let mut choices: Vec<Choice> = Vec::new();
    for Shape { workgroup, steps, rows } in shapes {
        let choice = Choice([workgroup, steps, rows, 0]);
        if workgroup > 0 && !choices.contains(&choice) {
            choices.push(choice);
        }
    }
    choices
}

fn matrix_format(problem: &Problem) -> WeightFormat {
    problem.format.expect("a matrix has a format")
}

/// Words of a matrix, and of its scales.
pub(crate) fn matrix_lens(format: WeightFormat, rows: usize, cols: usize) -> [usize; 2] {
    // Where there are no scales, any buffer stands there.
    [rows * format.row_words(cols), (rows * format.row_scales(cols)).div_ceil(2).max(4)]
}

fn variant(caps: &Caps, shape: Shape, format: WeightFormat, cols: usize, batch: usize) -> Variant {
    let Shape { workgroup, steps, rows } = shape;
    Variant::new()
        .weights_in_parts(format, format.lane_parts())
        .constant_is("WORKGROUP", workgroup)
        .constant_is("STEPS", steps)
        .constant_is("ROWS", rows)
        .constant_is("BATCH", batch as u32)
        .flag_if("ONCE", blocks(format, cols) <= (workgroup * steps) as usize)
        .flag_if("RAGGED", !cols.is_multiple_of(4))
        .subgroups(caps)
}

/// What a lane takes for a block in a row of `cols` weights.
fn blocks(format: WeightFormat, cols: usize) -> usize {
    format.blocks(cols) * format.lane_parts() as usize
}

/// The first of the candidates, for rows of so many blocks.
fn shape(blocks: usize, batch: usize) -> Shape {
    let (steps, rows) = (2, 4);
    match batch {
        1 => {
            Shape { workgroup: blocks.div_ceil(steps).next_multiple_of(32).min(256) as u32, steps: steps as u32, rows }
        }
        _ => Shape { workgroup: 64, steps: 1, rows },
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
            all.map(|(format, (batch, rows, cols))| own_case(caps, format, batch, rows, cols)).collect()
        }
        CaseSet::Bench => [
            (q4, 1, 5120, 3072),
            (q4, 1, 3072, 3072),
            (q4, 1, 16_384, 3072),
            (q4, 1, 3072, 8192),
            (q4, 1, 128_256, 3072),
            (q4, 1, 1024, 3072),
            (q4, 1, 576, 576),
            (q4, 4, 16_384, 3072),
            (q4, 8, 16_384, 3072),
            (f16, 1, 16_384, 3072),
        ]
        .map(|(format, batch, rows, cols)| own_case(caps, format, batch, rows, cols))
        .into(),
    }
}

/// Small cases of a model's matrices with so many inputs, of this folder's kernels.
pub(crate) fn cases_of(caps: &Caps, format: WeightFormat, cols: usize) -> Vec<(&'static Kernel, Case)> {
    vec![
        (&KERNEL, own_case(caps, format, 1, 10, cols)),
        (&KERNEL, own_case(caps, format, 3, 10, cols)),
        (&ADD_KERNEL, fused::own_add_case(caps, format, 10, cols)),
        (&SCALED_KERNEL, fused::own_scaled_case(caps, format, 10, cols, false)),
        (&SCALED_KERNEL, fused::own_scaled_case(caps, format, 10, cols, true)),
    ]
}

fn own_case(caps: &Caps, format: WeightFormat, batch: usize, rows: usize, cols: usize) -> Case {
    case(caps, shape(blocks(format, cols), batch), format, batch, rows, cols)
}

fn case(caps: &Caps, shape: Shape, format: WeightFormat, batch: usize, rows: usize, cols: usize) -> Case {
    let variant = variant(caps, shape, format, cols, batch);
    case_with(variant, format, batch, rows, cols, move |recorder, w, x, y| {
        Gemv { batch, y_stride: rows }.record_shape(recorder, shape, w, x, y);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workgroups_fit_the_rows_of_real_models() {
        let shapes = [(576, 32), (2048, 64), (3072, 96), (4096, 128), (8192, 256)];
        for (cols, workgroup) in shapes {
            let expected = Shape { workgroup, steps: 2, rows: 4 };
            assert_eq!(shape(cols / 16, 1), expected, "{cols}");
            let all = candidates(four_bits(), cols, 1);
            assert_eq!(Shape::of(all[0]), expected, "{cols}");
            assert!(all.len() > 5 && all.iter().all(|choice| choice.0[0] % 32 == 0 && choice.0[2] % 2 == 0), "{all:?}");
        }
        assert_eq!(shape(192, 4), Shape { workgroup: 64, steps: 1, rows: 4 });
    }
}
