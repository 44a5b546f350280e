//! [`LaneRows`]: the matrix product for a software device, whose lanes are those of the CPU's vector registers.
//!
//! Such a device runs a load as a loop over lanes, at a hundred times the cost of a multiplication, and its workgroup memory is
//! as slow as any other. So this kernel has no tiles: a lane owns rows of `w` and keeps loaded values in registers.

use super::{GemmParams, case_with};
use crate::{
    Case, CaseSet, Kernel, Variant, WeightFormat,
    cases::{all_formats, four_bits},
    gpu::{Buffer, Caps, Recorder},
    kernel::{Access, Params},
    matrix::Slice,
};

/// `y[m, n] = sum over k of x[m, k] * w[n, k]`, for a software device with a fixed subgroup size.
pub struct LaneRows {
    /// Rows of `x`, M.
    pub m: usize,
    /// Columns of `y`: the rows of the whole matrix, of which `w` may be a slice.
    pub y_stride: usize,
}

/// The kernel's record.
pub static KERNEL: Kernel = Kernel {
    name: LaneRows::NAME,
    wgsl: include_str!("lane_rows.wgsl"),
    bindings: &[Access::Read, Access::Read, Access::Read, Access::ReadWrite],
    params: GemmParams::LAYOUT,
    cases,
    has_substitute: true,
    ..Kernel::DEFAULTS
};

/// Small, so that a small matrix occupies every core of the CPU.
const WORKGROUP: u32 = 16;
/// Rows of `w` per lane.
const ROWS: u32 = 4;
/// Most rows of `x` that share a load of `w`.
const MAX_BATCH: usize = 8;

impl LaneRows {
    /// The kernel's name.
    pub(crate) const NAME: &str = "gemm_lane_rows";

    /// True for software devices with a fixed subgroup size.
    pub fn supports(caps: &Caps) -> bool {
        caps.is_software && caps.subgroups.and_then(|sizes| sizes.fixed()).is_some_and(|lanes| lanes <= WORKGROUP)
    }

    /// `x`: [m, w.cols]. `y`: [m, y_stride].
    pub fn record(&self, recorder: &mut Recorder, w: &Slice, x: &Buffer<f32>, y: &Buffer<f32>) {
        let variant = variant(recorder.gpu().caps(), w.format, w.cols, self.m);
        let tiles_m = self.m.div_ceil(batch(self.m));
        let tiles = tiles_m * w.rows.div_ceil((WORKGROUP * ROWS) as usize);
        let params = GemmParams::new(self.m, self.y_stride, w, tiles_m, tiles);
        let buffers = [(&w.q_weight).into(), (&w.q_scale).into(), x.into(), y.into()];
        recorder.dispatch(&KERNEL, &variant, &params, &buffers, tiles);
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
    if !LaneRows::supports(caps) {
        return Vec::new();
    }
    let q4 = four_bits();
    let shapes: Vec<(WeightFormat, usize, usize, usize)> = match set {
        CaseSet::Test => {
            let shapes =
                [(1, 130, 576), (2, 9, 32), (3, 67, 3072), (8, 64, 2048), (21, 5, 77), (9, 67, 96), (12, 20, 100)];
            all_formats().into_iter().flat_map(|f| shapes.map(|(m, rows, cols)| (f, m, rows, cols))).collect()
        }
        CaseSet::Bench => {
            [(1, 3072, 3072), (64, 3072, 3072), (1, 576, 576), (64, 576, 576)].map(|(m, n, k)| (q4, m, n, k)).into()
        }
    };
    let caps = *caps;
    shapes
        .into_iter()
        .map(|(format, m, rows, cols)| {
            case_with(variant(&caps, format, cols, m), format, m, rows, cols, move |recorder, w, x, y| {
                LaneRows { m, y_stride: rows }.record(recorder, w, x, y);
            })
        })
        .collect()
}
