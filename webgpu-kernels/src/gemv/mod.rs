//! `y[m, n] = sum over k of x[m, k] * w[n, k]` for one row m, and for up to [`MAX_BATCH`]: decoding.
//!
//! Bound by the memory that `w` is read from: what counts is how many bytes are on their way at a time. Neighbouring
//! lanes read neighbouring parts of a block, so that a subgroup reads whole lines of `w` and nearly so of `x`. Choices:
//! - `WORKGROUP` and `STEPS`: a row's blocks are as many, or the workgroup goes along the row.
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
    gpu::{Buffer, Caps, Recorder},
    kernel::{Access, Params, params},
    matrix::Slice,
};

pub use fused::{ADD_KERNEL, GemvAdd, GemvScaled, SCALED_KERNEL};
pub use reference::{gemv, gemv_add, gemv_scaled};

/// Most rows of `x`.
pub const MAX_BATCH: usize = 8;

/// Outputs per workgroup.
pub const ROWS: u32 = 4;

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

impl Gemv {
    /// `x`: [batch, w.cols]. `y`: [batch, y_stride].
    pub fn record(&self, recorder: &mut Recorder, w: &Slice, x: &Buffer<f32>, y: &Buffer<f32>) {
        let variant = variant(recorder.gpu().caps(), w.format, w.cols, self.batch);
        self.record_variant(recorder, &variant, w, x, y);
    }

    fn record_variant(&self, recorder: &mut Recorder, variant: &Variant, w: &Slice, x: &Buffer<f32>, y: &Buffer<f32>) {
        assert!((1..=MAX_BATCH).contains(&self.batch), "gemv: batch must be 1 to {MAX_BATCH}, got {}", self.batch);
        let params = GemvParams::new(w, self.y_stride);
        let buffers = [(&w.q_weight).into(), (&w.q_scale).into(), x.into(), y.into()];
        recorder.dispatch(&KERNEL, variant, &params, &buffers, w.rows.div_ceil(ROWS as usize));
    }
}

fn variant(caps: &Caps, format: WeightFormat, cols: usize, batch: usize) -> Variant {
    let blocks = blocks(format, cols);
    let (workgroup, steps) = shape(blocks, batch);
    Variant::new()
        .weights_in_parts(format, format.lane_parts())
        .constant_is("WORKGROUP", workgroup)
        .constant_is("STEPS", steps)
        .constant_is("ROWS", ROWS)
        .constant_is("BATCH", batch as u32)
        .flag_if("ONCE", blocks <= (workgroup * steps) as usize)
        .flag_if("RAGGED", !cols.is_multiple_of(4))
        .subgroups(caps)
}

/// What a lane takes for a block in a row of `cols` weights.
fn blocks(format: WeightFormat, cols: usize) -> usize {
    format.blocks(cols) * format.lane_parts() as usize
}

/// Lanes, and blocks of a lane at a time, for rows of so many blocks, as measured on an H200. More rows of `x` have no
/// registers for more blocks, and no workgroup memory for more lanes.
fn shape(blocks: usize, batch: usize) -> (u32, u32) {
    if batch > 1 {
        return (64, 1);
    }
    let steps = 2;
    (blocks.div_ceil(steps).next_multiple_of(32).min(256) as u32, steps as u32)
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
            all.map(|(format, (batch, rows, cols))| case(caps, format, batch, rows, cols)).collect()
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
        .map(|(format, batch, rows, cols)| case(caps, format, batch, rows, cols))
        .into(),
    }
}

/// Small cases of a model's matrices with so many inputs, of this folder's kernels.
pub(crate) fn cases_of(caps: &Caps, format: WeightFormat, cols: usize) -> Vec<(&'static Kernel, Case)> {
    vec![
        (&KERNEL, case(caps, format, 1, 10, cols)),
        (&KERNEL, case(caps, format, 3, 10, cols)),
        (&ADD_KERNEL, fused::add_case(caps, format, 10, cols)),
        (&SCALED_KERNEL, fused::scaled_case(caps, format, 10, cols, false)),
        (&SCALED_KERNEL, fused::scaled_case(caps, format, 10, cols, true)),
    ]
}

fn case(caps: &Caps, format: WeightFormat, batch: usize, rows: usize, cols: usize) -> Case {
    let variant = variant(caps, format, cols, batch);
    let recorded = variant.clone();
    case_with(variant, format, batch, rows, cols, move |recorder, w, x, y| {
        Gemv { batch, y_stride: rows }.record_variant(recorder, &recorded, w, x, y);
    })
}

#[cfg(test)]
mod tests {
    use super::shape;

    #[test]
    fn workgroups_fit_the_rows_of_real_models() {
        let shapes = [(576, (32, 2)), (2048, (64, 2)), (3072, (96, 2)), (4096, (128, 2)), (8192, (256, 2))];
        for (cols, expected) in shapes {
            assert_eq!(shape(cols / 16, 1), expected, "{cols}");
        }
        assert_eq!(shape(192, 4), (64, 1));
    }
}
