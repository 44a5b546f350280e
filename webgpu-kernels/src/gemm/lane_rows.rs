//! [`LaneRows`]: the matrix product for a software device, where a lane is a lane of the processor's vectors.
//!
//! Such a device runs a load as a loop over lanes, a hundred times the cost of a multiplication, and workgroup memory is
//! no faster than any other. So there are no tiles: a lane owns rows of `w` and keeps what it loads in registers.

use super::case_with;
use crate::{
    Case, CaseSet, Kernel, Variant, WeightFormat,
    gpu::{Buffer, Caps, Recorder},
    kernel::{Access, Params, params},
    matrix::Slice,
};

/// `y[m, n] = sum over k of x[m, k] * w[n, k]`, for a software device with subgroups of one size.
pub struct LaneRows {
    /// Rows of `x`, M.
    pub m: usize,
    /// Columns of `y`: rows of the whole matrix, where `w` is a slice of one.
    pub y_stride: usize,
}

params! {
    struct LaneRowsParams {
        m: u32, rows: u32, cols: u32, blocks: u32, first_row: u32, y_stride: u32, tiles_m: u32, groups: u32,
    }
}

/// The kernel's record.
pub static KERNEL: Kernel = Kernel {
    name: "gemm_lane_rows",
    wgsl: include_str!("lane_rows.wgsl"),
    bindings: &[Access::Read, Access::Read, Access::Read, Access::ReadWrite],
    params: LaneRowsParams::LAYOUT,
    cases,
};

/// Small, so that a small matrix gives every core of the processor some.
const WORKGROUP: u32 = 16;
/// Rows of `w` per lane.
const ROWS: u32 = 4;
/// Most rows of `x` that share what is loaded of `w`.
const MAX_BATCH: usize = 8;

impl LaneRows {
    /// Whether this is the kernel for the device.
    pub fn suits(caps: &Caps) -> bool {
        caps.is_software && caps.subgroups.is_some_and(|sizes| sizes.min == sizes.max && sizes.min <= WORKGROUP)
    }

    /// `x`: [m, w.cols]. `y`: [m, y_stride].
    pub fn record(&self, recorder: &mut Recorder, w: &Slice, x: &Buffer<f32>, y: &Buffer<f32>) {
        let variant = variant(recorder.gpu().caps(), w.format, w.cols, self.m);
        let tiles_m = self.m.div_ceil(batch(self.m));
        let groups = tiles_m * w.rows.div_ceil((WORKGROUP * ROWS) as usize);
        let params = LaneRowsParams {
            m: self.m as u32,
            rows: w.rows as u32,
            cols: w.cols as u32,
            blocks: w.format.blocks(w.cols) as u32,
            first_row: w.first_row as u32,
            y_stride: self.y_stride as u32,
            tiles_m: tiles_m as u32,
            groups: groups as u32,
        };
        let buffers = [(&w.q_weight).into(), (&w.q_scale).into(), x.into(), y.into()];
        recorder.dispatch(&KERNEL, &variant, &params, &buffers, groups);
    }
}

fn batch(m: usize) -> usize {
    m.next_power_of_two().min(MAX_BATCH)
}

fn variant(caps: &Caps, format: WeightFormat, cols: usize, m: usize) -> Variant {
    Variant::new()
        .weights(format)
        .constant_is("WORKGROUP", WORKGROUP)
        .constant_is("ROWS", ROWS)
        .constant_is("BATCH", batch(m) as u32)
        .flag_if("RAGGED", !cols.is_multiple_of(4))
        .subgroups(caps)
}

fn cases(caps: &Caps, set: CaseSet) -> Vec<Case> {
    if !LaneRows::suits(caps) {
        return Vec::new();
    }
    let q4 = crate::cases::four_bits();
    let q3 = WeightFormat::Group { bits: 3, group_size: 40 };
    let shapes: &[(WeightFormat, usize, usize, usize)] = match set {
        CaseSet::Test => &[
            (q4, 1, 130, 576),
            (q4, 3, 67, 3072),
            (q4, 8, 64, 2048),
            (q4, 21, 5, 77),
            (WeightFormat::F16, 9, 67, 96),
            (WeightFormat::F32, 1, 30, 77),
            (q3, 12, 20, 100),
        ],
        CaseSet::Bench => &[(q4, 1, 3072, 3072), (q4, 64, 3072, 3072), (q4, 1, 576, 576), (q4, 64, 576, 576)],
    };
    let caps = *caps;
    shapes
        .iter()
        .map(|&(format, m, rows, cols)| {
            case_with(variant(&caps, format, cols, m), format, m, rows, cols, move |recorder, w, x, y| {
                LaneRows { m, y_stride: rows }.record(recorder, w, x, y);
            })
        })
        .collect()
}
