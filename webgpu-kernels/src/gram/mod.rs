//! `sums[i, j] += sum over t of weight[t] * x[t, i] * x[t, j]`: the Hessian of a layer's quantization error. With drift,
//! `sums[i, j] += sum over t of weight[t] * (float[t, i] - base[t, i]) * x[t, j]`, where `float - base` is the error of the
//! quantized model's inputs or of its residual stream.
//!
//! If a matrix has too few tiles for the device, its tokens are split among workgroups. Each split has its own sums, which
//! [`GramSums::join`] adds.

mod reference;

use crate::{
    Case, CaseSet, Gpu, Kernel, Matrix, Result, Variant, WeightFormat,
    cases::Random,
    gptq::arrange::{Arrange, Order, Piece},
    gpu::{Buffer, Caps, Recorder},
    kernel::{Access, CaseBuffer, Params, Usage, params},
};

pub use reference::{add_products, token_weights};

/// One addition to [`GramSums`].
pub struct Gram {
    /// Rows of `x`.
    pub tokens: usize,
}

/// Weights of the tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenWeights {
    /// Weight each token by one over the mean square of its inputs.
    pub equal_norm: bool,
    /// Tokens in a window.
    pub window: usize,
    /// Factor of the first token of each window.
    pub first: f32,
}

/// Sums `[rows, cols]` on the device.
pub struct GramSums {
    /// Columns of the left operand, a multiple of four.
    pub rows: usize,
    /// Columns of `x`, a multiple of four.
    pub cols: usize,
    splits: usize,
    slices: Vec<SumSlice>,
}

/// Some rows of the sums.
struct SumSlice {
    first_row: usize,
    rows: usize,
    /// [splits, rows, cols], and the compensation of Kahan summation.
    sums: Buffer<f32>,
    lost: Buffer<f32>,
}

params! {
    struct GramParams {
        tokens: u32, cols: u32, left_cols: u32, first_row: u32, rows: u32, tiles_j: u32, tiles: u32, splits: u32,
        split_tokens: u32,
    }
}

params! { struct TokenWeightParams { tokens: u32, cols: u32, window: u32, first: f32 } }

/// The record of [`Gram`].
pub static KERNEL: Kernel = Kernel {
    name: "gram",
    wgsl: include_str!("gram.wgsl"),
    bindings: &[Access::Read, Access::Read, Access::Read, Access::Read, Access::ReadWrite, Access::ReadWrite],
    params: GramParams::LAYOUT,
    cases,
    usage: Usage::Offline,
    ..Kernel::DEFAULTS
};

/// The record of [`TokenWeights`].
pub static WEIGHT_KERNEL: Kernel = Kernel {
    name: "token_weight",
    wgsl: include_str!("token_weight.wgsl"),
    bindings: &[Access::Read, Access::ReadWrite],
    params: TokenWeightParams::LAYOUT,
    cases: weight_cases,
    usage: Usage::Offline,
    ..Kernel::DEFAULTS
};

/// Lanes of a workgroup, and outputs of a lane, in each of two dimensions.
#[derive(Clone, Copy)]
struct Tile {
    lanes: usize,
    outputs: usize,
}

impl Tile {
    const LARGE: Tile = Tile { lanes: 16, outputs: 8 };
    const MEDIUM: Tile = Tile { lanes: 8, outputs: 8 };
    const SMALL: Tile = Tile { lanes: 8, outputs: 4 };

    fn select(cols: usize) -> Tile {
        match cols {
            4096.. => Tile::LARGE,
            1024.. => Tile::MEDIUM,
            _ => Tile::SMALL,
        }
    }

    fn edge(self) -> usize {
        self.lanes * self.outputs
    }
}

/// Tokens of a step.
const STEP: usize = 16;
/// Split until this many workgroups run, which keep a large device busy, or until the most splits.
const ENOUGH_GROUPS: usize = 512;
const MAX_SPLITS: usize = 8;
/// Lanes per token of `token_weight`.
const WORKGROUP: u32 = 64;

impl GramSums {
    /// Sums of zero.
    ///
    /// Errors: out of memory. Panics if `rows` or `cols` is not a multiple of four.
    pub fn new(gpu: &Gpu, rows: usize, cols: usize) -> Result<GramSums> {
        let fours = rows.is_multiple_of(4) && cols.is_multiple_of(4);
        assert!(fours, "GramSums: {rows} x {cols} must be multiples of four");
        let edge = Tile::select(cols).edge();
        let tiles = rows.div_ceil(edge) * cols.div_ceil(edge);
        let splits = (ENOUGH_GROUPS / tiles).clamp(1, MAX_SPLITS);
        let slice_rows = (gpu.slice_bytes() as usize / (4 * splits * cols) / edge * edge).max(edge);
        let slices = (0..rows)
            .step_by(slice_rows)
            .map(|first_row| {
                let rows = slice_rows.min(rows - first_row);
                let (sums, lost) = (gpu.zeroed(splits * rows * cols)?, gpu.zeroed(splits * rows * cols)?);
                Ok(SumSlice { first_row, rows, sums, lost })
            })
            .collect::<Result<_>>()?;
        Ok(GramSums { rows, cols, splits, slices })
    }

    /// `scale` times the sums `[rows, cols]`. `symmetric`: true without drift, where only sums on and below the diagonal were
    /// computed. Errors: out of memory.
    pub fn join(&self, recorder: &mut Recorder, scale: f32, symmetric: bool) -> Result<Matrix> {
        let gpu = recorder.gpu();
        let joined = Matrix::zeroed(gpu, WeightFormat::F32, self.rows, self.cols, gpu.slice_bytes())?;
        let piece = |slice: &SumSlice| Piece {
            first: slice.first_row,
            rows: slice.rows,
            cols: self.cols,
            stride: self.cols,
            values: slice.sums.clone(),
        };
        let sums: Vec<Piece> = self.slices.iter().map(piece).collect();
        let order = if symmetric { Order::Symmetric } else { Order::Plain };
        Arrange { order, perm: None, splits: self.splits, scale }.record(recorder, &sums, &Piece::all(&joined));
        Ok(joined)
    }
}

impl TokenWeights {
    /// `x`: [tokens, cols], `cols` a multiple of four. `weight`: `[tokens]`.
    pub fn record(&self, recorder: &mut Recorder, tokens: usize, x: &Buffer<f32>, weight: &Buffer<f32>) {
        let params = TokenWeightParams {
            tokens: tokens as u32,
            cols: (x.len() / tokens.max(1)) as u32,
            window: self.window as u32,
            first: self.first,
        };
        let variant = self.variant(recorder.gpu().caps());
        recorder.dispatch(&WEIGHT_KERNEL, &variant, &params, &[x.into(), weight.into()], tokens);
    }

    fn variant(&self, caps: &Caps) -> Variant {
        Variant::new().constant_is("WORKGROUP", WORKGROUP).flag_if("EQUAL_NORM", self.equal_norm).subgroups(caps)
    }
}

impl Gram {
    /// `x`: [tokens, sums.cols]. `drift`: `float` and `base`, each [tokens, sums.rows]. `weight`: `[tokens]`.
    pub fn record(
        &self,
        recorder: &mut Recorder,
        x: &Buffer<f32>,
        drift: Option<[&Buffer<f32>; 2]>,
        weight: &Buffer<f32>,
        sums: &GramSums,
    ) {
        for slice in &sums.slices {
            let sizes = (sums.rows, sums.cols, sums.splits);
            self.record_slice(recorder, Tile::select(sums.cols), x, drift, weight, sizes, slice);
        }
    }

    fn record_slice(
        &self,
        recorder: &mut Recorder,
        tile: Tile,
        x: &Buffer<f32>,
        drift: Option<[&Buffer<f32>; 2]>,
        weight: &Buffer<f32>,
        (left_cols, cols, splits): (usize, usize, usize),
        slice: &SumSlice,
    ) {
        let edge = tile.edge();
        let tiles_j = cols.div_ceil(edge);
        let tiles = slice.rows.div_ceil(edge) * tiles_j;
        let params = GramParams {
            tokens: self.tokens as u32,
            cols: cols as u32,
            left_cols: left_cols as u32,
            first_row: slice.first_row as u32,
            rows: slice.rows as u32,
            tiles_j: tiles_j as u32,
            tiles: tiles as u32,
            splits: splits as u32,
            split_tokens: self.tokens.div_ceil(splits) as u32,
        };
        let [float, base] = drift.unwrap_or([x, x]);
        let (sums, lost) = (&slice.sums, &slice.lost);
        let buffers = [x.into(), float.into(), base.into(), weight.into(), sums.into(), lost.into()];
        recorder.dispatch(&KERNEL, &variant(tile, drift.is_some()), &params, &buffers, tiles * splits);
    }
}

fn variant(tile: Tile, drift: bool) -> Variant {
    Variant::new()
        .constant_is("LANES", tile.lanes as u32)
        .constant_is("LANE", tile.outputs as u32)
        .constant_is("QUADS", tile.outputs as u32 / 4)
        .constant_is("STEP", STEP as u32)
        .constant_is("FETCHES", (STEP * tile.edge() / 4 / (tile.lanes * tile.lanes)) as u32)
        .flag_if("DRIFT", drift)
}

/// Tokens, columns, first row and rows of a slice, splits, and with drift the columns of `float`.
type Shape = (usize, usize, (usize, usize), usize, Option<usize>);

fn cases(_: &Caps, set: CaseSet) -> Vec<Case> {
    let shapes: &[Shape] = match set {
        CaseSet::Test => &[
            (1, 4, (0, 4), 1, Some(4)),
            (17, 36, (0, 36), 3, None),
            (40, 100, (0, 100), 1, Some(100)),
            (100, 100, (32, 68), 8, None),
            (33, 100, (32, 32), 2, Some(100)),
            (50, 2052, (2048, 4), 1, None),
            (37, 260, (128, 132), 2, None),
            (20, 2052, (0, 128), 2, Some(2052)),
            (23, 132, (0, 36), 2, Some(36)),
            (31, 36, (64, 68), 1, Some(132)),
        ],
        CaseSet::Bench => &[
            (4096, 576, (0, 576), 1, None),
            (4096, 576, (0, 576), 8, Some(576)),
            (4096, 3072, (0, 3072), 1, None),
            (4096, 8192, (0, 4096), 1, Some(8192)),
        ],
    };
    let tiles = [Tile::LARGE, Tile::MEDIUM, Tile::SMALL];
    tiles.into_iter().flat_map(|tile| shapes.iter().map(move |&shape| case(tile, shape))).collect()
}

fn case(tile: Tile, (tokens, cols, (first_row, rows), splits, drift): Shape) -> Case {
    Case {
        label: format!("{tokens} x {cols}, rows {first_row} + {rows}, {splits} splits"),
        variant: variant(tile, drift.is_some()),
        // Without drift, half of the outputs are computed.
        flops: (if drift.is_some() { 2 } else { 1 } * tokens * rows * cols) as u64,
        bytes: 4 * (2 * tokens * cols + 4 * splits * rows * cols) as u64,
        tolerance: 1e-10,
        buffers: Box::new(move || {
            let mut random = Random::new((tokens * cols) as u64);
            let left_cols = drift.unwrap_or(cols);
            let (x, float) = (random.values(tokens * cols), random.values(tokens * left_cols));
            // Drift of the inputs is relative to `x`.
            let base = if left_cols == cols { x.clone() } else { random.values(tokens * left_cols) };
            let sums = random.values(splits * rows * cols);
            vec![
                CaseBuffer::input(&x),
                CaseBuffer::input(&float),
                CaseBuffer::input(&base),
                CaseBuffer::input(&random.values(tokens)),
                CaseBuffer::in_out(&sums),
                CaseBuffer::scratch(splits * rows * cols),
            ]
        }),
        record: Box::new(move |recorder, b| {
            let (x, float, base, weight) = (b[0].cast(), b[1].cast(), b[2].cast(), b[3].cast());
            let slice = SumSlice { first_row, rows, sums: b[4].cast(), lost: b[5].cast() };
            let sizes = (drift.unwrap_or(cols), cols, splits);
            let drift = drift.map(|_| [&float, &base]);
            Gram { tokens }.record_slice(recorder, tile, &x, drift, &weight, sizes, &slice);
        }),
        reference: Box::new(move |b| {
            let mut sums = b[4].values().to_vec();
            let (x, weight) = (b[0].values(), b[3].values());
            let split_tokens = tokens.div_ceil(splits);
            for (split, sums) in sums.chunks_mut(rows * cols).enumerate() {
                let part = (split * split_tokens).min(tokens)..((split + 1) * split_tokens).min(tokens);
                let values = part.start * cols..part.end * cols;
                let left = drift.map(|left_cols| {
                    let values = part.start * left_cols..part.end * left_cols;
                    ([1, 2].map(|i| &b[i].values()[values.clone()]), left_cols)
                });
                let edge = tile.edge();
                add_products(&x[values], left, &weight[part], cols, first_row, edge, sums);
            }
            vec![sums]
        }),
    }
}

fn weight_cases(caps: &Caps, _: CaseSet) -> Vec<Case> {
    let caps = *caps;
    let shapes = [(1, 4), (5, 100), (9, 576), (64, 1536)];
    let kinds = [false, true].map(|equal_norm| TokenWeights { equal_norm, window: 4, first: 3.5 });
    let all = shapes.iter().flat_map(|&shape| kinds.map(|kind| (shape, kind)));
    all.map(|((tokens, cols), kind)| Case {
        label: format!("{tokens} x {cols}"),
        variant: kind.variant(&caps),
        flops: 2 * (tokens * cols) as u64,
        bytes: 4 * (tokens * cols + tokens) as u64,
        tolerance: 1e-10,
        buffers: Box::new(move || {
            let mut x = Random::new(cols as u64).values(tokens * cols);
            // A token of zeros has weight one.
            x[..cols].fill(0.0);
            vec![CaseBuffer::input(&x), CaseBuffer::output(tokens)]
        }),
        record: Box::new(move |recorder, b| {
            kind.record(recorder, tokens, &b[0].cast().slice(0, tokens * cols), &b[1].cast());
        }),
        reference: Box::new(move |b| vec![token_weights(b[0].values(), cols, kind)]),
    })
    .collect()
}
