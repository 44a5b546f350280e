//! [`Cooperative`]: the matrix product on the device's matrix units (cooperative matrices), for many rows.
//!
//! Matrix units multiply f16 and sum in f32. Weights are converted to f16 when they are fetched. `gemm_narrow` converts activations
//! beforehand and scales each row by a power of two, so that outliers stay finite and small values keep their precision. The
//! result has the precision of f16; [`super::Gemm`] keeps f32. [`super::Few`] is faster for up to 64 rows.
//!
//! Both kernels add the products of each of a matrix's [`ranges`] of inputs, then the sums of the ranges, in order. So a row's result
//! does not depend on the number of rows, as [`FEWEST_ROWS`] demands.

use super::{Join, case_with, class, matrix_format};
use crate::{
    Case, CaseSet, Kernel, KvDtype, Variant, WeightFormat,
    cases::{Random, four_bits, with_outliers},
    gemv::{LAYER, matrix_lens},
    gpu::{Binding, Buffer, Caps, FEWEST_ROWS, Recorder},
    kernel::{Access, CaseBuffer, Params, Purpose, params, product},
    matrix::Slice,
    tuning::{GemmCooperativeChoice, Problem, Trial, Tunable},
};
use half::f16;
use std::ops::RangeInclusive;

/// `y[m, n] = sum over k of x[m, k] * w[n, k]`, in f16 with sums in f32.
pub struct Cooperative {
    /// Rows of `x`, M.
    pub m: usize,
    /// Columns of `y`: the rows of the whole matrix, of which `w` may be a slice.
    pub y_stride: usize,
}

/// Rows in f16, and the factor of each row.
pub struct Narrow {
    values: Buffer<u32>,
    inverse: Buffer<f32>,
}

params! {
    /// Also the parameters of [`super::Few`].
    pub(super) struct CooperativeParams {
        m: u32, rows: u32, blocks: u32, first_row: u32, y_stride: u32, tiles_m: u32, tiles: u32, x_quads: u32,
        range_blocks: u32, ranges: u32,
    }
}

params! { struct NarrowParams { m: u32, cols: u32, quads: u32 } }

/// The record of [`Cooperative`].
pub static KERNEL: Kernel = Kernel {
    name: Cooperative::NAME,
    wgsl: include_str!("cooperative.wgsl"),
    bindings: &[Access::Read, Access::Read, Access::Read, Access::Read, Access::ReadWrite],
    params: CooperativeParams::LAYOUT,
    cases,
    has_substitute: true,
    ..Kernel::DEFAULTS
};

/// The record of the kernel that converts rows to f16.
pub static NARROW_KERNEL: Kernel = Kernel {
    name: Narrow::NAME,
    wgsl: include_str!("narrow.wgsl"),
    bindings: &[Access::Read, Access::ReadWrite, Access::ReadWrite],
    params: NarrowParams::LAYOUT,
    cases: narrow_cases,
    has_substitute: true,
    ..Kernel::DEFAULTS
};

/// The tunable of the tile, for a class of row counts of `x`. The order of sums does not depend on it.
pub static TUNABLE: Tunable = Tunable {
    name: Cooperative::NAME,
    kernel: |_| &KERNEL,
    extents: &["rows", "cols", "m"],
    candidates: |_, problem| {
        let [rows, _, m, ..] = problem.sizes();
        let default = default_tile(m, rows);
        // A tile for many more rows leaves most of its subgroups idle.
        let others = TILES.into_iter().map(|(_, tile)| tile).filter(|tile| *tile != default && tile.m() <= 2 * m);
        std::iter::once(default).chain(others).map(|tile| tile.choice().into()).collect()
    },
    trial: |caps, problem, choice| {
        let ([rows, cols, m, ..], format) = (problem.sizes(), matrix_format(problem));
        let tile = chosen_tile(choice.get());
        Trial {
            case: case(*caps, tile, ranges(format, rows, cols), format, m, rows, cols),
            lens: [&matrix_lens(format, rows, cols)[..], &[m * cols, m * rows]].concat(),
            rotated: vec![0, 1],
            checks: vec![case(*caps, tile, Ranges::of(4, format.blocks(cols.min(768))), format, 33, 67, cols.min(768))],
        }
    },
};

/// The default tile for `m` rows of `x` and `rows` rows of the matrix.
fn default_tile(m: usize, rows: usize) -> Tile {
    let mut fitting = TILES.iter().filter(|(for_rows, _)| for_rows.contains(&m)).map(|(_, tile)| *tile);
    let last = fitting.clone().next_back().expect("the last tile is for any rows");
    fitting.find(|tile| tile.tiles(m, rows) >= ENOUGH_TILES).unwrap_or(last)
}

fn chosen_tile(choice: GemmCooperativeChoice) -> Tile {
    let is_chosen = |(_, tile): &&(RangeInclusive<usize>, Tile)| tile.choice() == choice;
    TILES.iter().find(is_chosen).expect("a choice is one of the tiles").1
}

/// Subgroups of a workgroup along m and n, fragments of 16 x 16 outputs of each subgroup along m and n, and quads of a step along k.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tile {
    warps: (usize, usize),
    fragments: (usize, usize),
    step: usize,
}

/// The tiles in order of preference, each with its row counts of `x`.
const TILES: [(RangeInclusive<usize>, Tile); 3] = [
    (65..=usize::MAX, Tile { warps: (2, 2), fragments: (4, 4), step: 8 }),
    (0..=32, Tile { warps: (1, 4), fragments: (2, 2), step: 8 }),
    (0..=usize::MAX, Tile { warps: (2, 2), fragments: (2, 2), step: 8 }),
];
/// Every prefill chunk has at least this many rows, so all chunks use this kernel or [`super::Few`], which gives the same bits.
const MIN_ROWS: usize = FEWEST_ROWS;
/// Supported subgroup sizes; all subgroups must have the same. A fragment lies in the lanes of a whole subgroup. Four subgroups make
/// a workgroup of 128 or 256 lanes, and WebGPU guarantees 256.
const SUBGROUP_LANES: [u32; 2] = [32, 64];
/// Edge of a fragment.
pub(super) const EDGE: usize = 16;
/// A matrix of at most this many rows has too few tiles for a large device. Its inputs are divided into ranges.
const MOST_DIVIDED_ROWS: usize = 6144;
/// Ranges of such a matrix, if it has enough columns.
const RANGES: usize = 4;
const FEWEST_DIVIDED_COLS: usize = 1024;
/// A range is a multiple of this many blocks.
pub(super) const RANGE_BLOCKS: usize = 4;
/// Workgroups that keep a large device busy.
const ENOUGH_TILES: usize = 128;
/// Lanes of a workgroup of `gemm_narrow`.
const NARROW_WORKGROUP: u32 = 256;

/// The ranges of inputs, of which each is summed alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ranges {
    pub count: usize,
    /// Blocks of each. The last ones may have fewer or none.
    pub blocks: usize,
}

impl Ranges {
    /// Divides a row of `blocks` blocks.
    pub fn of(count: usize, blocks: usize) -> Ranges {
        Ranges { count, blocks: blocks.div_ceil(count).next_multiple_of(RANGE_BLOCKS) }
    }
}

/// The ranges of a matrix. They depend on nothing else: not on the device, its choices, or the rows of `x`.
pub(super) fn ranges(format: WeightFormat, rows: usize, cols: usize) -> Ranges {
    let is_divided = has_nibbles(format) && rows <= MOST_DIVIDED_ROWS && cols >= FEWEST_DIVIDED_COLS;
    Ranges::of(if is_divided { RANGES } else { 1 }, format.blocks(cols))
}

/// Most temporary values per row of `x`, for matrices of at most `rows` rows.
pub(super) fn most_parts(rows: usize) -> usize {
    RANGES * rows.min(MOST_DIVIDED_ROWS)
}

/// Quads of a row of `x` in f16.
fn x_quads(format: WeightFormat, cols: usize) -> usize {
    format.blocks(cols).next_multiple_of(RANGE_BLOCKS) * format.block_size() / 4
}

impl CooperativeParams {
    /// For a slice. `tiles_m` of the `tiles` cover the rows of `x`.
    pub(super) fn new(
        m: usize,
        y_stride: usize,
        w: &Slice,
        ranges: Ranges,
        tiles_m: usize,
        tiles: usize,
    ) -> CooperativeParams {
        CooperativeParams {
            m: m as u32,
            rows: w.rows as u32,
            blocks: w.format.blocks(w.cols) as u32,
            first_row: w.first_row as u32,
            y_stride: y_stride as u32,
            tiles_m: tiles_m as u32,
            tiles: tiles as u32,
            x_quads: x_quads(w.format, w.cols) as u32,
            range_blocks: ranges.blocks as u32,
            ranges: ranges.count as u32,
        }
    }
}

impl Narrow {
    /// The kernel's name.
    pub(crate) const NAME: &str = "gemm_narrow";

    /// `x`: [m, cols]. Padded to whole ranges of `format`'s blocks, and to whole fragments of rows with any values.
    pub fn record(recorder: &mut Recorder, format: WeightFormat, x: &Buffer<f32>, m: usize, cols: usize) -> Narrow {
        let quads = x_quads(format, cols);
        let values = recorder.temporary(m.next_multiple_of(EDGE) * quads * 2);
        let narrow = Narrow { values, inverse: recorder.temporary(m) };
        narrow.record_into(recorder, x, m, cols, quads);
        narrow
    }

    /// The buffers of a product of these rows.
    pub(super) fn buffers_with<'a>(&'a self, w: &'a Slice, y: &'a Buffer<f32>) -> [Binding<'a>; 5] {
        [(&w.q_weight).into(), (&w.q_scale).into(), (&self.values).into(), (&self.inverse).into(), y.into()]
    }

    fn record_into(&self, recorder: &mut Recorder, x: &Buffer<f32>, m: usize, cols: usize, quads: usize) {
        let params = NarrowParams { m: m as u32, cols: cols as u32, quads: quads as u32 };
        let buffers = [x.into(), (&self.values).into(), (&self.inverse).into()];
        recorder.dispatch(&NARROW_KERNEL, &narrow_variant(cols), &params, &buffers, m);
    }
}

impl Cooperative {
    /// The kernel's name.
    pub(crate) const NAME: &str = "gemm_cooperative";

    /// True if the device has matrix units that the kernel supports.
    pub fn supports_device(caps: &Caps) -> bool {
        let lanes = caps.subgroups.and_then(|sizes| sizes.fixed());
        caps.cooperative_matrix && caps.f16 && lanes.is_some_and(|lanes| SUBGROUP_LANES.contains(&lanes))
    }

    /// True if the kernel is used for `m` rows of `x` and this format. Weights in f32 keep the precision of f32.
    pub fn supports(caps: &Caps, format: WeightFormat, m: usize) -> bool {
        Cooperative::supports_device(caps) && has_format(format) && m >= MIN_ROWS
    }

    /// `x`: [m, w.cols], padded for `w`'s format. `y`: [m, y_stride].
    pub fn record(&self, recorder: &mut Recorder, w: &Slice, x: &Narrow, y: &Buffer<f32>) {
        let problem = Problem::new(&TUNABLE, Some(w.format), [w.rows, w.cols, class(self.m)]);
        let tile = chosen_tile(recorder.gpu().choice(problem).get());
        self.record_tile(recorder, tile, ranges(w.format, w.rows, w.cols), w, x, y);
    }

    fn record_tile(&self, recorder: &mut Recorder, tile: Tile, ranges: Ranges, w: &Slice, x: &Narrow, y: &Buffer<f32>) {
        let (tiles, tiles_m) = (tile.tiles(self.m, w.rows), self.m.div_ceil(tile.m()));
        let params = CooperativeParams::new(self.m, self.y_stride, w, ranges, tiles_m, tiles);
        let variant = variant(recorder.gpu().caps(), tile, w.format);
        if ranges.count == 1 {
            return recorder.dispatch(&KERNEL, &variant, &params, &x.buffers_with(w, y), tiles);
        }
        let parts = recorder.temporary(ranges.count * self.m * w.rows);
        let params = CooperativeParams { first_row: 0, y_stride: w.rows as u32, ..params };
        recorder.dispatch(&KERNEL, &variant, &params, &x.buffers_with(w, &parts), tiles * ranges.count);
        let splits = ranges.count as u32;
        let join = Join { m: self.m, rows: w.rows, first_row: w.first_row, y_stride: self.y_stride, splits };
        join.record(recorder, &parts, y);
    }
}

impl Tile {
    fn choice(self) -> GemmCooperativeChoice {
        GemmCooperativeChoice {
            warps_m: self.warps.0 as u32,
            warps_n: self.warps.1 as u32,
            frags_m: self.fragments.0 as u32,
            frags_n: self.fragments.1 as u32,
        }
    }

    fn m(&self) -> usize {
        EDGE * self.warps.0 * self.fragments.0
    }

    fn n(&self) -> usize {
        EDGE * self.warps.1 * self.fragments.1
    }

    fn tiles(&self, m: usize, n: usize) -> usize {
        m.div_ceil(self.m()) * n.div_ceil(self.n())
    }
}

fn has_format(format: WeightFormat) -> bool {
    matches!(format, WeightFormat::F16 | WeightFormat::Group { .. }) && format.part_quads() == 2
}

/// True for four-bit codes in groups of 32.
pub(super) fn has_nibbles(format: WeightFormat) -> bool {
    matches!(format, WeightFormat::Group { bits: 4, group_size: 32 })
}

fn variant(caps: &Caps, tile: Tile, format: WeightFormat) -> Variant {
    let lanes = tile.warps.0 * tile.warps.1 * caps.subgroups.map_or(1, |sizes| sizes.min as usize);
    let fetches = |rows: usize| (rows * tile.step / 2).div_ceil(lanes) as u32;
    Variant::new()
        .weights(format)
        .flag("COOPERATIVE")
        .constant_is("WARPS_M", tile.warps.0 as u32)
        .constant_is("WARPS_N", tile.warps.1 as u32)
        .constant_is("FRAGS_M", tile.fragments.0 as u32)
        .constant_is("FRAGS_N", tile.fragments.1 as u32)
        .constant_is("STEP", tile.step as u32)
        .constant_is("X_FETCHES", fetches(tile.m()))
        .constant_is("W_FETCHES", fetches(tile.n()))
        .subgroups(caps)
}

fn narrow_variant(cols: usize) -> Variant {
    Variant::new().constant_is("WORKGROUP", NARROW_WORKGROUP).flag_if("RAGGED", !cols.is_multiple_of(4))
}

fn cases(caps: &Caps, set: CaseSet) -> Vec<Case> {
    if !Cooperative::supports_device(caps) {
        return Vec::new();
    }
    let (q4, f16) = (four_bits(), WeightFormat::F16);
    let shapes: Vec<(WeightFormat, usize, usize, usize)> = match set {
        CaseSet::Test => vec![
            (q4, 64, 64, 576),
            (q4, 33, 67, 768),
            (q4, 130, 133, 100),
            (q4, 17, 130, 2048),
            (f16, 64, 64, 576),
            (f16, 100, 5, 77),
            (f16, 33, 200, 96),
        ],
        CaseSet::Bench => {
            let of_layer = [16, 32, 64, 512].into_iter().flat_map(|m| LAYER.map(|(rows, cols)| (q4, m, rows, cols)));
            of_layer.chain([(f16, 512, 16_384, 3072)]).collect()
        }
    };
    let all = TILES.into_iter().flat_map(|(_, tile)| shapes.iter().map(move |shape| (tile, *shape)));
    all.map(|(tile, (format, m, rows, cols))| case(*caps, tile, ranges(format, rows, cols), format, m, rows, cols))
        .collect()
}

fn case(caps: Caps, tile: Tile, ranges: Ranges, format: WeightFormat, m: usize, rows: usize, cols: usize) -> Case {
    let case = case_with(variant(&caps, tile, format), format, m, rows, cols, move |recorder, w, x, y| {
        let x = Narrow::record(recorder, format, x, m, cols);
        Cooperative { m, y_stride: rows }.record_tile(recorder, tile, ranges, w, &x, y);
    });
    // f16 inputs and weights have eleven significant bits.
    Case { tolerance: 2e-7, ..case }
}

fn narrow_cases(_: &Caps, set: CaseSet) -> Vec<Case> {
    let shapes: &[(usize, usize)] = match set {
        CaseSet::Test => &[(3, 64), (7, 100), (5, 77), (33, 3072)],
        CaseSet::Bench => &[(512, 3072), (512, 8192)],
    };
    let case = |&(m, cols): &(usize, usize)| {
        let padded = cols.next_multiple_of(32);
        Case {
            label: format!("{m} x {cols}"),
            variant: narrow_variant(cols),
            flops: product(&[2, m, cols]),
            bytes: (6 * m * cols) as u64,
            tolerance: 1e-10,
            buffers: Box::new(move || {
                let mut x = with_outliers(Random::new(cols as u64).values(m * cols));
                // A row of zeros, and a row of very small values.
                x[..cols].fill(0.0);
                x[cols..2 * cols].iter_mut().for_each(|v| *v *= 1e-30);
                let narrow =
                    CaseBuffer { words: vec![u32::MAX; m * padded / 2], purpose: Purpose::Kv(KvDtype::F16, padded) };
                vec![CaseBuffer::input(&x), narrow, CaseBuffer::output(m)]
            }),
            record: Box::new(move |recorder, b| {
                let narrow = Narrow { values: b[1].clone(), inverse: b[2].cast() };
                narrow.record_into(recorder, &b[0].cast(), m, cols, padded / 4);
            }),
            reference: Box::new(move |b| {
                let (mut narrow, mut inverses) = (Vec::new(), Vec::new());
                for row in b[0].values().chunks_exact(cols) {
                    let most = row.iter().fold(0f32, |most, v| most.max(v.abs()));
                    let exponent = if most == 0.0 { -112 } else { most.log2().floor() as i32 };
                    let inverse = 2f32.powi(exponent - 14);
                    inverses.push(inverse);
                    narrow.extend(row.iter().map(|v| f16::from_f32(v / inverse).to_f32()));
                    narrow.resize(narrow.len() + padded - cols, 0.0);
                }
                vec![narrow, inverses]
            }),
        }
    };
    shapes.iter().map(case).collect()
}
