//! `y[m, n] = sum over k of x[m, k] * w[n, k]` for many rows m: prefilling.
//!
//! Bound by arithmetic: tiles in workgroup memory, and in each lane a block of outputs in registers. Smaller tiles
//! (`LANE_M`, `LANE_N`) serve few rows, and matrices that would not give every core of the device a tile. Software devices
//! have a kernel of their own, [`LaneRows`].

mod lane_rows;

use crate::{
    Case, CaseSet, Kernel, Variant, WeightFormat,
    cases::{self, Random, all_formats, four_bits, random_matrix, with_outliers},
    gemv::gemv,
    gpu::{Buffer, Caps, Recorder},
    kernel::{Access, CaseBuffer, Params, params},
    matrix::Slice,
};

pub use lane_rows::{KERNEL as LANE_ROWS_KERNEL, LaneRows};

/// `y[m, n] = sum over k of x[m, k] * w[n, k]`. Its reference is [`gemv`]'s.
pub struct Gemm {
    /// Rows of `x`, M.
    pub m: usize,
    /// Columns of `y`: rows of the whole matrix, where `w` is a slice of one.
    pub y_stride: usize,
}

params! {
    struct GemmParams {
        m: u32, rows: u32, cols: u32, blocks: u32, first_row: u32, y_stride: u32, tiles_m: u32, tiles: u32,
    }
}

impl GemmParams {
    /// Of a slice; `tiles_m` of the `tiles` lie one below the other.
    fn new(m: usize, y_stride: usize, w: &Slice, tiles_m: usize, tiles: usize) -> GemmParams {
        GemmParams {
            m: m as u32,
            rows: w.rows as u32,
            cols: w.cols as u32,
            blocks: w.format.blocks(w.cols) as u32,
            first_row: w.first_row as u32,
            y_stride: y_stride as u32,
            tiles_m: tiles_m as u32,
            tiles: tiles as u32,
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
};

/// Outputs per lane in both directions; a workgroup has 8 x 8 lanes.
#[derive(Clone, Copy)]
struct Tile {
    lane_m: usize,
    lane_n: usize,
}

/// Workgroups that keep a large device busy.
const ENOUGH_TILES: usize = 256;

impl Tile {
    const LARGE: Tile = Tile { lane_m: 8, lane_n: 8 };
    const FLAT: Tile = Tile { lane_m: 4, lane_n: 8 };
    const SMALL: Tile = Tile { lane_m: 4, lane_n: 4 };

    fn select(m: usize, n: usize) -> Tile {
        let enough = |tile: &&Tile| m > 8 * tile.lane_m / 2 && tile.tiles(m, n) >= ENOUGH_TILES;
        *[Tile::LARGE, Tile::FLAT].iter().find(enough).unwrap_or(&Tile::SMALL)
    }

    fn tiles(&self, m: usize, n: usize) -> usize {
        m.div_ceil(8 * self.lane_m) * n.div_ceil(8 * self.lane_n)
    }
}

impl Gemm {
    /// `x`: [m, w.cols]. `y`: [m, y_stride].
    pub fn record(&self, recorder: &mut Recorder, w: &Slice, x: &Buffer<f32>, y: &Buffer<f32>) {
        self.record_tile(recorder, Tile::select(self.m, w.rows), w, x, y);
    }

    fn record_tile(&self, recorder: &mut Recorder, tile: Tile, w: &Slice, x: &Buffer<f32>, y: &Buffer<f32>) {
        let tiles = tile.tiles(self.m, w.rows);
        let params = GemmParams::new(self.m, self.y_stride, w, self.m.div_ceil(8 * tile.lane_m), tiles);
        let buffers = [(&w.q_weight).into(), (&w.q_scale).into(), x.into(), y.into()];
        recorder.dispatch(&KERNEL, &variant(tile, w.format, w.cols), &params, &buffers, tiles);
    }
}

fn variant(tile: Tile, format: WeightFormat, cols: usize) -> Variant {
    Variant::new()
        .weights(format)
        .constant_is("LANE_M", tile.lane_m as u32)
        .constant_is("LANE_N", tile.lane_n as u32)
        .constant_is("QUADS_M", tile.lane_m as u32 / 4)
        .constant_is("QUADS_N", tile.lane_n as u32 / 4)
        .flag_if("RAGGED", !cols.is_multiple_of(4))
}

fn cases(_: &Caps, set: CaseSet) -> Vec<Case> {
    let (q4, f16) = (four_bits(), WeightFormat::F16);
    let tiles = [Tile::LARGE, Tile::FLAT, Tile::SMALL];
    match set {
        CaseSet::Test => {
            let shapes = [
                (64, 64, 576),
                (9, 130, 2048),
                (33, 67, 768),
                (1, 1, 32),
                (100, 5, 77),
                (65, 33, 100),
                (12, 30, 96),
                (40, 64, 576),
                (2, 9, 32),
            ];
            let formats = all_formats().into_iter();
            let all = formats.flat_map(|format| tiles.into_iter().flat_map(move |t| shapes.map(|s| (format, t, s))));
            all.map(|(format, tile, (m, rows, cols))| case(tile, format, m, rows, cols)).collect()
        }
        CaseSet::Bench => {
            let shapes: &[(WeightFormat, usize, usize, usize)] = &[
                (q4, 512, 5120, 3072),
                (q4, 512, 3072, 3072),
                (q4, 512, 16_384, 3072),
                (q4, 512, 3072, 8192),
                (q4, 32, 16_384, 3072),
                (f16, 512, 3072, 3072),
            ];
            let all = shapes.iter().flat_map(|shape| tiles.map(|tile| (tile, *shape)));
            all.map(|(tile, (format, m, rows, cols))| case(tile, format, m, rows, cols)).collect()
        }
    }
}

fn case(tile: Tile, format: WeightFormat, m: usize, rows: usize, cols: usize) -> Case {
    case_with(variant(tile, format, cols), format, m, rows, cols, move |recorder, w, x, y| {
        Gemm { m, y_stride: rows }.record_tile(recorder, tile, w, x, y);
    })
}

/// A case of a matrix product, in every other shape with activations that have outliers. `record`: with w, x, y.
pub(crate) fn case_with(
    variant: Variant,
    format: WeightFormat,
    m: usize,
    rows: usize,
    cols: usize,
    record: impl Fn(&mut Recorder, &Slice, &Buffer<f32>, &Buffer<f32>) + 'static,
) -> Case {
    let has_outliers = (m + rows).is_multiple_of(2) && cols > 4;
    Case {
        label: format!("{m} x {rows} x {cols}{}", if has_outliers { ", outliers" } else { "" }),
        variant,
        flops: 2 * (m * rows * cols) as u64,
        bytes: (rows * format.blocks(cols) * format.block_bytes() + 4 * m * (rows + cols)) as u64,
        tolerance: 1e-10,
        buffers: Box::new(move || {
            let [q_weight, q_scale] = random_matrix(format, rows, cols, cols as u64);
            let x = Random::new(rows as u64).values(m * cols);
            let x = if has_outliers { with_outliers(x) } else { x };
            vec![q_weight, q_scale, CaseBuffer::input(&x), CaseBuffer::output(m * rows)]
        }),
        record: Box::new(move |recorder, b| {
            let w = cases::slice(format, rows, cols, &b[0], &b[1]);
            record(recorder, &w, &b[2].cast(), &b[3].cast());
        }),
        reference: Box::new(move |b| {
            let w = cases::values(format, rows, cols, &b[0].words, &b[1].words);
            let mut y = vec![0.0; m * rows];
            gemv(&w, b[2].values(), cols, &mut y);
            vec![y]
        }),
    }
}
