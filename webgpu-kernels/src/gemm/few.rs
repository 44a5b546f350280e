//! [`Few`]: the matrix product on the device's matrix units for few rows: batched decoding.
//!
//! [`super::Cooperative`] shares tiles among the subgroups of a workgroup, which pays off with many rows. With few rows it has too few
//! workgroups, and each waits for memory at each step. Here the subgroups of a workgroup divide the inputs among them, and each keeps
//! several steps of weights in flight. Results have the same bits: see [`ranges`].

use super::{
    case_with,
    cooperative::{Cooperative, CooperativeParams, EDGE, Narrow, RANGE_BLOCKS, Ranges, has_nibbles, ranges},
    matrix_format,
};
use crate::{
    Case, CaseSet, Kernel, Variant, WeightFormat,
    cases::four_bits,
    gemv::{LAYER, matrix_lens},
    gpu::{Buffer, COOPERATIVE_BYTES, Caps, Recorder},
    kernel::{Access, Params},
    matrix::Slice,
    tuning::{GemmFewChoice, Problem, Trial, Tunable},
};

/// `y[m, n] = sum over k of x[m, k] * w[n, k]` for up to [`Few::MAX_ROWS`] rows, in f16 with sums in f32.
pub struct Few {
    /// Rows of `x`, M.
    pub m: usize,
    /// Columns of `y`: the rows of the whole matrix, of which `w` may be a slice.
    pub y_stride: usize,
}

/// The kernel's record.
pub static KERNEL: Kernel = Kernel {
    name: Few::NAME,
    wgsl: include_str!("few.wgsl"),
    bindings: &[Access::Read, Access::Read, Access::Read, Access::Read, Access::ReadWrite],
    params: CooperativeParams::LAYOUT,
    cases,
    has_substitute: true,
    ..Kernel::DEFAULTS
};

/// The tunable of the tile, for each number of fragments along the rows of `x`. The order of sums does not depend on it.
pub static TUNABLE: Tunable = Tunable {
    name: Few::NAME,
    kernel: |_| &KERNEL,
    extents: &["rows", "cols", "m"],
    candidates: |caps, problem| {
        let [rows, cols, m, ..] = problem.sizes();
        tiles(caps, m, ranges(matrix_format(problem), rows, cols)).map(|tile| tile.0.into()).collect()
    },
    trial: |caps, problem, choice| {
        let ([rows, cols, m, ..], format, tile) = (problem.sizes(), matrix_format(problem), Tile(choice.get()));
        let ranges = ranges(format, rows, cols);
        // Enough columns for each range to have a step, and for the last step to be partial.
        let checked = ranges.count * RANGE_BLOCKS * format.block_size() - 32;
        let small = Ranges { blocks: RANGE_BLOCKS, ..ranges };
        Trial {
            case: case(*caps, tile, ranges, m, rows, cols),
            lens: [&matrix_lens(format, rows, cols)[..], &[m * cols, m * rows]].concat(),
            rotated: vec![0, 1],
            checks: vec![case(*caps, tile, small, m - 3, 67, checked)],
        }
    },
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tile(GemmFewChoice);

/// Subgroups of a team along the rows of `x` and of the matrix, fragments of each along the latter, blocks of a step, and steps in flight,
/// in order of preference.
const TILES: [[u32; 5]; 16] = [
    [1, 2, 1, 2, 4],
    [1, 1, 2, 1, 2],
    [1, 1, 1, 2, 4],
    [1, 2, 1, 2, 2],
    [1, 1, 2, 2, 4],
    [1, 1, 2, 2, 2],
    [1, 2, 1, 1, 4],
    [1, 1, 1, 1, 4],
    [1, 4, 1, 2, 4],
    [1, 4, 1, 2, 2],
    [1, 4, 1, 1, 4],
    [1, 4, 1, 4, 2],
    [1, 8, 1, 2, 4],
    [1, 8, 1, 1, 4],
    [1, 4, 2, 2, 2],
    [2, 2, 1, 2, 2],
];
/// Most lanes of a workgroup: WebGPU's default limit.
const MAX_LANES: u32 = 256;
/// Most registers of a lane for sums and values in flight.
const MAX_REGISTERS: u32 = 144;

/// The tiles that a device allows, the default first.
fn tiles(caps: &Caps, m: usize, ranges: Ranges) -> impl Iterator<Item = Tile> {
    let (lanes, teams, fragments) = (lanes(caps), ranges.count as u32, m.div_ceil(EDGE) as u32);
    let all = TILES.map(|[warps_m, warps_n, frags_n, step_blocks, depth]| {
        Tile(GemmFewChoice { warps_m, warps_n, frags_n, step_blocks, depth })
    });
    let fits = move |tile: &Tile| {
        let Tile(GemmFewChoice { warps_m, warps_n, frags_n, depth, .. }) = *tile;
        let warps = teams * warps_m * warps_n;
        let [w_fetches, x_fetches] = tile.loads(fragments).map(|loads| loads.div_ceil(warps_m * warps_n * lanes));
        let registers = 8 * fragments.div_ceil(warps_m) * frags_n + depth * (5 * w_fetches + 4 * x_fetches);
        (4..=8).contains(&warps)
            && warps * lanes <= MAX_LANES
            && tile.bytes(ranges, fragments) <= COOPERATIVE_BYTES
            && registers <= MAX_REGISTERS
    };
    all.into_iter().filter(fits)
}

fn lanes(caps: &Caps) -> u32 {
    caps.subgroups.map_or(1, |sizes| sizes.min)
}

impl Tile {
    fn n(self) -> usize {
        EDGE * (self.0.warps_n * self.0.frags_n) as usize
    }

    /// Bytes of workgroup memory.
    fn bytes(self, ranges: Ranges, fragments: u32) -> u32 {
        let (tile, edge) = (self.0, EDGE as u32);
        let tile_rows = edge * (fragments + tile.warps_n * tile.frags_n);
        let results = 4 * edge * edge * tile.warps_m * tile.warps_n;
        ranges.count as u32 * (8 * tile_rows * (8 * tile.step_blocks + 2) + results)
    }

    /// Blocks of w, and pairs of quads of x, that a team loads for a step.
    fn loads(self, fragments: u32) -> [u32; 2] {
        let tile = self.0;
        let edge = EDGE as u32;
        [edge * tile.warps_n * tile.frags_n * tile.step_blocks, edge * fragments * 4 * tile.step_blocks]
    }
}

impl Few {
    /// The kernel's name.
    pub(crate) const NAME: &str = "gemm_few";
    /// Most rows of `x`.
    pub const MAX_ROWS: usize = 64;
    /// With fewer rows, [`crate::gemv`] is faster.
    const MIN_ROWS: usize = 7;

    /// True if the kernel is used for `m` rows of `x` and this format.
    pub fn supports(caps: &Caps, format: WeightFormat, m: usize) -> bool {
        Cooperative::supports_device(caps) && has_nibbles(format) && (Few::MIN_ROWS..=Few::MAX_ROWS).contains(&m)
    }

    /// `x`: [m, w.cols], padded for `w`'s format. `y`: [m, y_stride].
    pub fn record(&self, recorder: &mut Recorder, w: &Slice, x: &Narrow, y: &Buffer<f32>) {
        let problem = Problem::new(&TUNABLE, Some(w.format), [w.rows, w.cols, self.m.next_multiple_of(EDGE)]);
        let tile = Tile(recorder.gpu().choice(problem).get());
        self.record_tile(recorder, tile, ranges(w.format, w.rows, w.cols), w, x, y);
    }

    fn record_tile(&self, recorder: &mut Recorder, tile: Tile, ranges: Ranges, w: &Slice, x: &Narrow, y: &Buffer<f32>) {
        let tiles = w.rows.div_ceil(tile.n());
        let params = CooperativeParams::new(self.m, self.y_stride, w, ranges, 1, tiles);
        let variant = variant(recorder.gpu().caps(), tile, ranges, w.format, self.m);
        recorder.dispatch(&KERNEL, &variant, &params, &x.buffers_with(w, y), tiles);
    }
}

fn variant(caps: &Caps, tile: Tile, ranges: Ranges, format: WeightFormat, m: usize) -> Variant {
    let fragments = m.div_ceil(EDGE) as u32;
    let GemmFewChoice { warps_m, warps_n, frags_n, step_blocks, depth } = tile.0;
    let team = warps_m * warps_n * lanes(caps);
    let [w_loads, x_loads] = tile.loads(fragments);
    Variant::new()
        .weights(format)
        .flag("COOPERATIVE")
        .flag_if("PARTIAL_W", !w_loads.is_multiple_of(team))
        .flag_if("PARTIAL_X", !x_loads.is_multiple_of(team))
        .constant_is("WARPS_K", ranges.count as u32)
        .constant_is("WARPS_M", warps_m)
        .constant_is("WARPS_N", warps_n)
        .constant_is("M_FRAGS", fragments)
        .constant_is("FRAGS_M", fragments.div_ceil(warps_m))
        .constant_is("FRAGS_N", frags_n)
        .constant_is("STEP_BLOCKS", step_blocks)
        .constant_is("STEP_FRAGS", 2 * step_blocks)
        .constant_is("BLOCK_WORDS", 4)
        .constant_is("DEPTH", depth)
        .constant_is("W_FETCHES", w_loads.div_ceil(team))
        .constant_is("X_FETCHES", x_loads.div_ceil(team))
        .subgroups(caps)
}

fn cases(caps: &Caps, set: CaseSet) -> Vec<Case> {
    if !Cooperative::supports_device(caps) {
        return Vec::new();
    }
    let caps = *caps;
    let of = |m: usize, rows: usize, cols: usize, ranges: Ranges| {
        tiles(&caps, m, ranges).map(move |tile| case(caps, tile, ranges, m, rows, cols)).collect::<Vec<_>>()
    };
    match set {
        CaseSet::Test => {
            let shapes = [(7, 67, 576), (16, 130, 2048), (17, 33, 768), (33, 64, 100), (64, 200, 1536), (9, 5, 77)];
            let of_all = |count| {
                let ranges = move |cols: usize| Ranges::of(count, four_bits().blocks(cols));
                shapes.into_iter().flat_map(move |(m, rows, cols)| of(m, rows, cols, ranges(cols)))
            };
            [1, 4].into_iter().flat_map(of_all).collect()
        }
        CaseSet::Bench => {
            let shapes = [8, 9, 16, 32, 64].into_iter().flat_map(|m| LAYER.map(|(rows, cols)| (m, rows, cols)));
            shapes.flat_map(|(m, rows, cols)| of(m, rows, cols, ranges(four_bits(), rows, cols))).collect()
        }
    }
}

fn case(caps: Caps, tile: Tile, ranges: Ranges, m: usize, rows: usize, cols: usize) -> Case {
    let format = four_bits();
    let case = case_with(variant(&caps, tile, ranges, format, m), format, m, rows, cols, move |recorder, w, x, y| {
        let x = Narrow::record(recorder, format, x, m, cols);
        Few { m, y_stride: rows }.record_tile(recorder, tile, ranges, w, &x, y);
    });
    // f16 inputs and weights have eleven significant bits.
    Case { tolerance: 2e-7, ..case }
}
