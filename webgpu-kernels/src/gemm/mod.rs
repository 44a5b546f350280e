//! `y[m, n] = sum over k of x[m, k] * w[n, k]` for many rows m: prefill.
//!
//! The kernel is bound by arithmetic. Workgroup memory holds tiles of `x` and `w`, and each lane keeps a block of outputs in
//! registers. `TILES` lists the tile sizes; autotuning picks one. If a product has too few tiles for a large device, it is split
//! along k (split-K), and `gemm_join` adds the partial sums. Software devices use [`LaneRows`], devices with matrix units may use
//! [`Cooperative`].

mod cooperative;
mod few;
mod lane_rows;

use crate::{
    Case, CaseSet, Kernel, Variant, WeightFormat,
    cases::{Random, all_formats, four_bits},
    gemv::{case_beside_outliers, matrix_lens},
    gpu::{Buffer, Caps, Gpu, Recorder},
    kernel::{Access, CaseBuffer, Params, params, product},
    matrix::Slice,
    tuning::{GemmChoice, GemmSplitsChoice, Problem, Trial, Tunable},
};

pub use cooperative::{
    Cooperative, KERNEL as COOPERATIVE_KERNEL, NARROW_KERNEL, Narrow, TUNABLE as COOPERATIVE_TUNABLE,
};
pub use few::{Few, KERNEL as FEW_KERNEL, TUNABLE as FEW_TUNABLE};
pub use lane_rows::{KERNEL as LANE_ROWS_KERNEL, LaneRows};

/// `y[m, n] = sum over k of x[m, k] * w[n, k]`. Its reference is that of [`crate::gemv`].
pub struct Gemm {
    /// Rows of `x`, M.
    pub m: usize,
    /// Columns of `y`: the rows of the whole matrix, of which `w` may be a slice.
    pub y_stride: usize,
}

params! {
    struct GemmParams {
        m: u32, rows: u32, cols: u32, blocks: u32, first_row: u32, y_stride: u32, tiles_m: u32, tiles: u32,
        splits: u32, split_steps: u32,
    }
}

params! { struct JoinParams { m: u32, rows: u32, first_row: u32, y_stride: u32, splits: u32 } }

impl GemmParams {
    /// For a slice. `tiles_m` of the `tiles` cover the rows of `x`.
    fn new(m: usize, y_stride: usize, w: &Slice, tiles_m: usize, tiles: usize) -> GemmParams {
        let blocks = w.format.blocks(w.cols) as u32;
        GemmParams {
            m: m as u32,
            rows: w.rows as u32,
            cols: w.cols as u32,
            blocks,
            first_row: w.first_row as u32,
            y_stride: y_stride as u32,
            tiles_m: tiles_m as u32,
            tiles: tiles as u32,
            splits: 1,
            split_steps: STEPS * blocks,
        }
    }
}

/// The kernel's record.
pub static KERNEL: Kernel = Kernel {
    name: "gemm",
    wgsl: include_str!("gemm.wgsl"),
    bindings: &[Access::Read, Access::Read, Access::Read, Access::ReadWrite],
    params: GemmParams::LAYOUT,
    cases,
    ..Kernel::DEFAULTS
};

/// The record of the kernel that adds the partial sums of split-K.
pub static JOIN_KERNEL: Kernel = Kernel {
    name: "gemm_join",
    wgsl: include_str!("join.wgsl"),
    bindings: &[Access::Read, Access::ReadWrite],
    params: JoinParams::LAYOUT,
    cases: join_cases,
    ..Kernel::DEFAULTS
};

/// The tunable of the tile, for a class of row counts of `x`. The order of sums does not depend on it.
pub static TUNABLE: Tunable = Tunable {
    name: "gemm",
    kernel: |_| &KERNEL,
    extents: &["rows", "cols", "m"],
    candidates: |caps, problem| {
        let ([_, _, m, ..], format) = (problem.sizes(), matrix_format(problem));
        let default = default_tile(caps, m, format);
        // A tile for many more rows leaves most of its lanes idle.
        let fits = |tile: &Tile| *tile != default && tile.m() < 2 * m;
        let others = tiles(caps, format).map(|(_, tile)| tile).filter(fits);
        std::iter::once(default).chain(others).map(|tile| tile.choice().into()).collect()
    },
    trial: |_, problem, choice| {
        let [rows, cols, m, ..] = problem.sizes();
        let splits = default_splits(matrix_format(problem), rows, cols);
        plan_trial(problem, Plan { tile: chosen_tile(choice.get()), splits }, m)
    },
};

/// The tunable of split-K. It depends on the matrix and not on the rows of `x`, so that results do not depend on how many rows
/// run at a time.
pub static SPLITS_TUNABLE: Tunable = Tunable {
    name: "gemm_splits",
    kernel: |_| &KERNEL,
    extents: &["rows", "cols"],
    candidates: |_, problem| {
        let ([rows, cols, ..], format) = (problem.sizes(), matrix_format(problem));
        let default = default_splits(format, rows, cols);
        // Never more than the default: `scratch_cols` relies on it.
        let others = (1..=default).rev().filter(|splits| *splits != default && splits.is_power_of_two());
        std::iter::once(default).chain(others).map(|splits| GemmSplitsChoice { splits: splits as u32 }.into()).collect()
    },
    trial: |caps, problem, choice| {
        let tile = default_tile(caps, TIMED_ROWS, matrix_format(problem));
        let GemmSplitsChoice { splits } = choice.get();
        plan_trial(problem, Plan { tile, splits: splits as usize }, TIMED_ROWS)
    },
};

/// Classes of row counts of `x`. Each covers the counts up to it, the last one larger counts too.
const CLASSES: [usize; 4] = [16, 32, 64, TIMED_ROWS];
/// Rows of a prefill chunk.
const TIMED_ROWS: usize = 512;

/// The class of a row count of `x`.
fn class(m: usize) -> usize {
    CLASSES.into_iter().find(|most| m <= *most).unwrap_or(TIMED_ROWS)
}

fn matrix_format(problem: &Problem) -> WeightFormat {
    problem.format.expect("a matrix has a format")
}

fn chosen_tile(choice: GemmChoice) -> Tile {
    let is_chosen = |(_, tile): &&(usize, Tile)| tile.choice() == choice;
    TILES.iter().find(is_chosen).expect("a choice is one of the tiles").1
}

/// The product of a problem's matrix with `m` rows under a plan, checked by a small product.
fn plan_trial(problem: &Problem, plan: Plan, m: usize) -> Trial {
    let ([rows, cols, ..], format) = (problem.sizes(), matrix_format(problem));
    // Wide enough for each split to have a step.
    let small = if plan.splits > 1 { 16 * format.block_size() } else { cols.min(512) };
    Trial {
        case: case(plan, format, m, rows, cols),
        lens: [&matrix_lens(format, rows, cols)[..], &[m * cols, m * rows]].concat(),
        rotated: vec![0, 1],
        checks: vec![case(plan, format, 9, 10, small.max(cols % 4))],
    }
}

/// Lanes of a workgroup along m and n, multiples of eight, and outputs of a lane along m and n.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tile {
    lanes: (usize, usize),
    outputs: (usize, usize),
}

/// How a product is divided among workgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Plan {
    tile: Tile,
    /// Ranges along k.
    splits: usize,
}

/// The tiles, each with its least number of rows of `x`. Larger tiles were no faster on the measured devices.
const TILES: [(usize, Tile); 4] = [
    (33, Tile { lanes: (8, 8), outputs: (8, 8) }),
    (17, Tile { lanes: (8, 8), outputs: (4, 8) }),
    (0, Tile { lanes: (8, 8), outputs: (2, 8) }),
    SMALL_TILE,
];
/// For devices known to have few registers.
const SMALL_TILE: (usize, Tile) = (0, Tile { lanes: (8, 8), outputs: (4, 4) });
/// A quantized matrix with fewer rows than this is split along k, so that splits times rows come to about this number. The number
/// of splits depends on the matrix alone: results do not depend on how many rows of `x` run at a time.
const SPLIT_ROWS: usize = 12_288;
/// Most splits, and fewest steps of each.
const MAX_SPLITS: usize = 4;
const MIN_SPLIT_STEPS: usize = 16;
/// Steps per block of weights.
const STEPS: u32 = 2;
/// Bytes of workgroup memory: WebGPU's default limit.
const WORKGROUP_BYTES: usize = 16_384;
/// Lanes of a workgroup of `gemm_join`.
const JOIN_WORKGROUP: u32 = 256;

impl Tile {
    const fn m(&self) -> usize {
        self.lanes.0 * self.outputs.0
    }

    const fn n(&self) -> usize {
        self.lanes.1 * self.outputs.1
    }

    fn tiles(&self, m: usize, n: usize) -> usize {
        m.div_ceil(self.m()) * n.div_ceil(self.n())
    }

    fn choice(self) -> GemmChoice {
        GemmChoice { lane_m: self.outputs.0 as u32, lane_n: self.outputs.1 as u32 }
    }

    /// Registers of a lane: sums, current operands, and values fetched for the next step. Addresses take half as many again,
    /// as seen in the output of Mesa's compilers.
    fn registers(&self) -> u32 {
        let (m, n) = self.outputs;
        (3 * (m * n + 4 * m + 4 + 2 * m + n) / 2) as u32
    }

    /// True if the tiles of `x` and `w` fit in workgroup memory.
    fn fits(&self, format: WeightFormat) -> bool {
        4 * (self.m() + self.n()) * format.block_size() / STEPS as usize <= WORKGROUP_BYTES
    }
}

/// Splits by default. Float matrices are not split, since they run with many rows.
fn default_splits(format: WeightFormat, rows: usize, cols: usize) -> usize {
    if !matches!(format, WeightFormat::Group { .. }) {
        return 1;
    }
    let most = (STEPS as usize * format.blocks(cols) / MIN_SPLIT_STEPS).clamp(1, MAX_SPLITS);
    (SPLIT_ROWS / rows.max(1)).clamp(1, most)
}

/// Most temporary values per row of `x`, for a matrix of at most `rows` x `cols`.
pub fn scratch_cols(rows: usize, cols: usize) -> usize {
    SPLIT_ROWS.min(MAX_SPLITS * rows).max(cooperative::most_parts(rows)).max(cols)
}

/// The tiles that a device and a format allow.
fn tiles(caps: &Caps, format: WeightFormat) -> impl Iterator<Item = (usize, Tile)> {
    let registers = caps.registers;
    TILES.into_iter().filter(move |entry| {
        let fits = registers.map_or(*entry != SMALL_TILE, |registers| entry.1.registers() <= registers);
        fits && entry.1.fits(format)
    })
}

/// The default tile for `m` rows of `x`.
fn default_tile(caps: &Caps, m: usize, format: WeightFormat) -> Tile {
    tiles(caps, format).find(|(from, _)| m >= *from).expect("the smallest tile fits every format").1
}

impl Plan {
    fn of(gpu: &Gpu, m: usize, w: &Slice) -> Plan {
        let tile = gpu.choice(Problem::new(&TUNABLE, Some(w.format), [w.rows, w.cols, class(m)]));
        let splits = gpu.choice(Problem::new(&SPLITS_TUNABLE, Some(w.format), [w.rows, w.cols]));
        Plan { tile: chosen_tile(tile.get()), splits: splits.get::<GemmSplitsChoice>().splits as usize }
    }
}

impl Gemm {
    /// `x`: [m, w.cols]. `y`: [m, y_stride].
    pub fn record(&self, recorder: &mut Recorder, w: &Slice, x: &Buffer<f32>, y: &Buffer<f32>) {
        let plan = Plan::of(recorder.gpu(), self.m, w);
        self.record_plan(recorder, plan, w, x, y);
    }

    fn record_plan(&self, recorder: &mut Recorder, plan: Plan, w: &Slice, x: &Buffer<f32>, y: &Buffer<f32>) {
        let Plan { tile, splits } = plan;
        let tiles = tile.tiles(self.m, w.rows);
        let params = GemmParams::new(self.m, self.y_stride, w, self.m.div_ceil(tile.m()), tiles);
        let split_steps = params.split_steps.div_ceil(splits as u32);
        // Rounding up the steps of each split may leave fewer splits.
        let splits = params.split_steps.div_ceil(split_steps);
        let variant = variant(tile, w.format, w.cols);
        let record = |recorder: &mut Recorder, params: &GemmParams, y: &Buffer<f32>| {
            let buffers = [(&w.q_weight).into(), (&w.q_scale).into(), x.into(), y.into()];
            recorder.dispatch(&KERNEL, &variant, params, &buffers, tiles * splits as usize);
        };
        if splits == 1 {
            return record(recorder, &params, y);
        }
        let parts = recorder.temporary(splits as usize * self.m * w.rows);
        let params = GemmParams { splits, split_steps, first_row: 0, y_stride: w.rows as u32, ..params };
        record(recorder, &params, &parts);
        let join = Join { m: self.m, rows: w.rows, first_row: w.first_row, y_stride: self.y_stride, splits };
        join.record(recorder, &parts, y);
    }
}

/// Adds the partial sums of split-K.
pub(super) struct Join {
    m: usize,
    rows: usize,
    first_row: usize,
    y_stride: usize,
    splits: u32,
}

impl Join {
    /// `parts`: [splits, m, rows]. `y`: [m, y_stride].
    fn record(&self, recorder: &mut Recorder, parts: &Buffer<f32>, y: &Buffer<f32>) {
        let params = JoinParams {
            m: self.m as u32,
            rows: self.rows as u32,
            first_row: self.first_row as u32,
            y_stride: self.y_stride as u32,
            splits: self.splits,
        };
        let groups = (self.m * self.rows).div_ceil(JOIN_WORKGROUP as usize);
        recorder.dispatch(&JOIN_KERNEL, &join_variant(), &params, &[parts.into(), y.into()], groups);
    }
}

fn join_variant() -> Variant {
    Variant::new().constant_is("WORKGROUP", JOIN_WORKGROUP)
}

fn variant(tile: Tile, format: WeightFormat, cols: usize) -> Variant {
    let step = format.block_size() / 4 / STEPS as usize;
    let lanes = tile.lanes.0 * tile.lanes.1;
    let w_fetches = (tile.n() * step / format.part_quads() as usize).div_ceil(lanes);
    Variant::new()
        .weights(format)
        .constant_is("LANES_M", tile.lanes.0 as u32)
        .constant_is("LANES_N", tile.lanes.1 as u32)
        .constant_is("LANE_M", tile.outputs.0 as u32)
        .constant_is("LANE_N", tile.outputs.1 as u32)
        .constant_is("X_FETCHES", (tile.m() * step).div_ceil(lanes) as u32)
        .constant_is("W_FETCHES", w_fetches as u32)
        .flag_if("RAGGED", !cols.is_multiple_of(4))
}

fn cases(caps: &Caps, set: CaseSet) -> Vec<Case> {
    let (q4, f16, f32) = (four_bits(), WeightFormat::F16, WeightFormat::F32);
    match set {
        CaseSet::Test => {
            let shapes = [
                (64, 64, 576, 1),
                (9, 130, 2048, 3),
                (33, 67, 768, 1),
                (1, 1, 32, 1),
                (100, 5, 77, 2),
                (65, 133, 100, 1),
                (12, 30, 96, 1),
                (2, 9, 32, 1),
            ];
            let formats = all_formats().into_iter();
            let all = formats
                .flat_map(|format| tiles(caps, format).flat_map(move |(_, tile)| shapes.map(|s| (format, tile, s))));
            all.map(|(format, tile, (m, rows, cols, splits))| case(Plan { tile, splits }, format, m, rows, cols))
                .collect()
        }
        CaseSet::Bench => {
            let shapes: &[(WeightFormat, usize, usize, usize)] = &[
                (q4, 512, 5120, 3072),
                (q4, 512, 3072, 3072),
                (q4, 512, 16_384, 3072),
                (q4, 512, 3072, 8192),
                (q4, 9, 5120, 3072),
                (q4, 9, 3072, 3072),
                (q4, 9, 16_384, 3072),
                (q4, 9, 3072, 8192),
                (q4, 16, 16_384, 3072),
                (q4, 32, 16_384, 3072),
                (q4, 32, 3072, 8192),
                (f16, 512, 3072, 3072),
                (f32, 2048, 16_384, 3072),
                (f16, 2048, 16_384, 3072),
                (f32, 2048, 3072, 8192),
            ];
            let plans =
                |format| tiles(caps, format).flat_map(|(_, tile)| [1, 2, 4, 16].map(|splits| Plan { tile, splits }));
            let all = shapes.iter().flat_map(|shape| plans(shape.0).map(move |plan| (plan, *shape)));
            let all = all.filter(|(plan, (_, m, ..))| plan.splits == 1 || *m * plan.splits <= 2048);
            all.map(|(plan, (format, m, rows, cols))| case(plan, format, m, rows, cols)).collect()
        }
    }
}

fn case(plan: Plan, format: WeightFormat, m: usize, rows: usize, cols: usize) -> Case {
    let mut case = case_with(variant(plan.tile, format, cols), format, m, rows, cols, move |recorder, w, x, y| {
        Gemm { m, y_stride: rows }.record_plan(recorder, plan, w, x, y);
    });
    if plan.splits > 1 {
        case.label += &format!(", {} splits", plan.splits);
    }
    case
}

fn join_cases(_: &Caps, _: CaseSet) -> Vec<Case> {
    let shapes: [(usize, usize, u32); 3] = [(1, 1, 2), (7, 30, 5), (33, 100, 16)];
    let case = |(m, rows, splits): (usize, usize, u32)| Case {
        label: format!("{m} x {rows}, {splits} splits"),
        variant: join_variant(),
        flops: product(&[m, rows, splits as usize]),
        bytes: product(&[4, m, rows, splits as usize + 1]),
        tolerance: 1e-10,
        buffers: Box::new(move || {
            let parts = Random::new(rows as u64).values(splits as usize * m * rows);
            vec![CaseBuffer::input(&parts), CaseBuffer::output(m * rows)]
        }),
        record: Box::new(move |recorder, b| {
            Join { m, rows, first_row: 0, y_stride: rows, splits }.record(recorder, &b[0].cast(), &b[1].cast());
        }),
        reference: Box::new(move |b| {
            let parts = b[0].values();
            vec![(0..m * rows).map(|i| parts[i..].iter().step_by(m * rows).sum()).collect()]
        }),
    };
    shapes.map(case).into()
}

/// A case of a matrix product. Every other shape has outliers in its activations. Half of its outputs then depend on ordinary
/// inputs alone, so that outliers do not hide their errors. `record` takes w, x, y.
pub(crate) fn case_with(
    variant: Variant,
    format: WeightFormat,
    m: usize,
    rows: usize,
    cols: usize,
    record: impl Fn(&mut Recorder, &Slice, &Buffer<f32>, &Buffer<f32>) + Send + Sync + 'static,
) -> Case {
    case_beside_outliers(variant, format, [m, rows, cols], true, record)
}
