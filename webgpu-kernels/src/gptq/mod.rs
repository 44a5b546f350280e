//! Quantizes a matrix on the device: GPTQ's columns (`Columns`), coordinate descent over scales and codes (`Scales`, `Codes`), and
//! the update of the other columns (`RankUpdate`).
//!
//! [`Solver`] combines the steps. Codes are integers stored as f32. Scale and zero of a group are adjacent.

pub(crate) mod arrange;
mod reference;
mod solver;

use crate::{
    Case, CaseSet, Kernel, Variant,
    cases::Random,
    gpu::{Buffer, Caps, Recorder},
    kernel::{Access, CaseBuffer, Params, Usage, params},
};

pub use arrange::{ARRANGE_KERNEL, DIAGONAL_KERNEL};
pub use solver::{Problem, Solution, Solver};

/// Columns rounded at a time.
pub const BLOCK: usize = 32;

/// Lanes of a workgroup, one per row.
const LANES: usize = 64;

/// `y[r, c] -= sum over k of a[r, k] * b[k, c]` for the columns from `first` on. All are multiples of [`BLOCK`].
struct RankUpdate {
    rows: usize,
    cols: usize,
    first: usize,
    depth: usize,
}

/// Rounds [`BLOCK`] columns of weights from `start` on.
struct Columns {
    rows: usize,
    cols: usize,
    start: usize,
    group_len: usize,
    max_code: u32,
}

/// Optimizes the scale of a group.
struct Scales {
    rows: usize,
    cols: usize,
    group: usize,
    len: usize,
    coarse_bits: u32,
}

/// Optimizes the codes of [`BLOCK`] columns of a group, from its `offset` on.
struct Codes {
    rows: usize,
    cols: usize,
    group: usize,
    len: usize,
    offset: usize,
    max_code: u32,
}

/// `error = weights - values`.
struct Errors {
    rows: usize,
    cols: usize,
    group_len: usize,
}

/// `dots[r] = a[r] . b[r]`.
struct RowDots {
    rows: usize,
    cols: usize,
}

params! { struct RankUpdateParams { rows: u32, cols: u32, first: u32, depth: u32, tiles_j: u32, tiles: u32 } }
params! { struct ColumnsParams { rows: u32, cols: u32, start: u32, groups: u32, group_len: u32, max_code: u32 } }
params! { struct ScalesParams { rows: u32, cols: u32, groups: u32, group: u32, len: u32, coarse_bits: u32 } }
params! {
    struct CodesParams { rows: u32, cols: u32, groups: u32, group: u32, len: u32, offset: u32, max_code: u32 }
}
params! { struct ErrorsParams { len: u32, cols: u32, groups: u32, group_len: u32 } }
params! { struct RowDotsParams { rows: u32, cols: u32 } }

const READ: Access = Access::Read;
const WRITE: Access = Access::ReadWrite;

/// The record of the update of the other columns.
pub static RANK_UPDATE_KERNEL: Kernel = Kernel {
    name: "rank_update",
    wgsl: include_str!("rank_update.wgsl"),
    bindings: &[READ, READ, WRITE],
    params: RankUpdateParams::LAYOUT,
    cases: rank_update_cases,
    usage: Usage::Offline,
    ..Kernel::DEFAULTS
};

/// The record of GPTQ's columns.
pub static COLUMNS_KERNEL: Kernel = Kernel {
    name: "gptq_columns",
    wgsl: include_str!("columns.wgsl"),
    bindings: &[READ, READ, READ, READ, READ, WRITE, WRITE, WRITE],
    params: ColumnsParams::LAYOUT,
    cases: columns_cases,
    usage: Usage::Offline,
    ..Kernel::DEFAULTS
};

/// The record of coordinate descent over scales.
pub static SCALES_KERNEL: Kernel = Kernel {
    name: "gptq_scales",
    wgsl: include_str!("scales.wgsl"),
    bindings: &[READ, READ, READ, WRITE, WRITE],
    params: ScalesParams::LAYOUT,
    cases: scales_cases,
    usage: Usage::Offline,
    ..Kernel::DEFAULTS
};

/// The record of coordinate descent over codes.
pub static CODES_KERNEL: Kernel = Kernel {
    name: "gptq_codes",
    wgsl: include_str!("codes.wgsl"),
    bindings: &[READ, READ, READ, WRITE, WRITE],
    params: CodesParams::LAYOUT,
    cases: codes_cases,
    usage: Usage::Offline,
    ..Kernel::DEFAULTS
};

/// The record of the rounding errors.
pub static ERRORS_KERNEL: Kernel = Kernel {
    name: "gptq_errors",
    wgsl: include_str!("error.wgsl"),
    bindings: &[READ, READ, READ, WRITE],
    params: ErrorsParams::LAYOUT,
    cases: errors_cases,
    usage: Usage::Offline,
    ..Kernel::DEFAULTS
};

/// The record of dot products of rows.
pub static ROW_DOTS_KERNEL: Kernel = Kernel {
    name: "row_dots",
    wgsl: include_str!("row_dots.wgsl"),
    bindings: &[READ, READ, WRITE],
    params: RowDotsParams::LAYOUT,
    cases: row_dots_cases,
    usage: Usage::Offline,
    ..Kernel::DEFAULTS
};

impl RankUpdate {
    /// `a`: `[rows, depth]`. `b`: `[depth, cols]`. `y`: `[rows, cols]`.
    fn record(&self, recorder: &mut Recorder, a: &Buffer<f32>, b: &Buffer<f32>, y: &Buffer<f32>) {
        let tiles_j = (self.cols - self.first).div_ceil(64);
        let tiles = self.rows.div_ceil(32) * tiles_j;
        let params = RankUpdateParams {
            rows: self.rows as u32,
            cols: self.cols as u32,
            first: self.first as u32,
            depth: self.depth as u32,
            tiles_j: tiles_j as u32,
            tiles: tiles as u32,
        };
        let buffers = [a.into(), b.into(), y.into()];
        recorder.dispatch(&RANK_UPDATE_KERNEL, &Variant::new(), &params, &buffers, tiles);
    }
}

/// Results of [`Columns`].
struct ColumnsOut<'a> {
    /// `[rows, cols]`, in the order of the matrix.
    codes: &'a Buffer<f32>,
    /// `[rows, BLOCK]`: rounding errors, divided by the diagonal of the factor.
    errors: &'a Buffer<f32>,
    /// `[rows, BLOCK]`: the negated weights before rounding, if drift is corrected.
    unrounded: Option<&'a Buffer<f32>>,
}

impl Columns {
    /// `weights`: `[rows, cols]` in the order `perm` `[cols]`. `factor`, `correction`: `[BLOCK, cols]`, rows from `start` on.
    /// `grid`: `[rows, groups, 2]`.
    fn record(
        &self,
        recorder: &mut Recorder,
        weights: &Buffer<f32>,
        factor: &Buffer<f32>,
        correction: Option<&Buffer<f32>>,
        perm: &Buffer<u32>,
        grid: &Buffer<f32>,
        out: &ColumnsOut<'_>,
    ) {
        let params = ColumnsParams {
            rows: self.rows as u32,
            cols: self.cols as u32,
            start: self.start as u32,
            groups: (self.cols / self.group_len) as u32,
            group_len: self.group_len as u32,
            max_code: self.max_code,
        };
        // A buffer may have only one writable binding, so an unused one gets a spare buffer.
        let spare = recorder.temporary(LANES);
        let unrounded = out.unrounded.unwrap_or(&spare);
        let buffers = [
            weights.into(),
            factor.into(),
            correction.unwrap_or(factor).into(),
            perm.into(),
            grid.into(),
            out.codes.into(),
            out.errors.into(),
            unrounded.into(),
        ];
        let variant = rows_variant().flag_if("CORRECTED", correction.is_some());
        recorder.dispatch(&COLUMNS_KERNEL, &variant, &params, &buffers, self.rows.div_ceil(LANES));
    }
}

impl Scales {
    /// `residual`, `codes`: `[rows, cols]`. `lines`: `[len, cols]`, the group's rows of the Hessian. `grid`: `[rows, groups, 2]`.
    /// `changes`: `[rows, len]`.
    fn record(
        &self,
        recorder: &mut Recorder,
        residual: &Buffer<f32>,
        codes: &Buffer<f32>,
        lines: &Buffer<f32>,
        grid: &Buffer<f32>,
        changes: &Buffer<f32>,
    ) {
        let params = ScalesParams {
            rows: self.rows as u32,
            cols: self.cols as u32,
            groups: (self.cols / self.len) as u32,
            group: self.group as u32,
            len: self.len as u32,
            coarse_bits: self.coarse_bits,
        };
        let buffers = [residual.into(), codes.into(), lines.into(), grid.into(), changes.into()];
        recorder.dispatch(&SCALES_KERNEL, &rows_variant(), &params, &buffers, self.rows.div_ceil(LANES));
    }
}

impl Codes {
    /// As [`Scales::record`]; `changes`: `[rows, BLOCK]`.
    fn record(
        &self,
        recorder: &mut Recorder,
        residual: &Buffer<f32>,
        lines: &Buffer<f32>,
        grid: &Buffer<f32>,
        codes: &Buffer<f32>,
        changes: &Buffer<f32>,
    ) {
        let params = CodesParams {
            rows: self.rows as u32,
            cols: self.cols as u32,
            groups: (self.cols / self.len) as u32,
            group: self.group as u32,
            len: self.len as u32,
            offset: self.offset as u32,
            max_code: self.max_code,
        };
        let buffers = [residual.into(), lines.into(), grid.into(), codes.into(), changes.into()];
        recorder.dispatch(&CODES_KERNEL, &rows_variant(), &params, &buffers, self.rows.div_ceil(LANES));
    }
}

impl Errors {
    /// `weights`, `codes`, `error`: `[rows, cols]`. `grid`: `[rows, groups, 2]`.
    fn record(
        &self,
        recorder: &mut Recorder,
        weights: &Buffer<f32>,
        codes: &Buffer<f32>,
        grid: &Buffer<f32>,
        error: &Buffer<f32>,
    ) {
        let len = self.rows * self.cols;
        let params = ErrorsParams {
            len: len as u32,
            cols: self.cols as u32,
            groups: (self.cols / self.group_len) as u32,
            group_len: self.group_len as u32,
        };
        let buffers = [weights.into(), codes.into(), grid.into(), error.into()];
        recorder.dispatch(&ERRORS_KERNEL, &Variant::new(), &params, &buffers, len.div_ceil(256));
    }
}

impl RowDots {
    /// `a`, `b`: `[rows, cols]`. `dots`: `[rows]`.
    fn record(&self, recorder: &mut Recorder, a: &Buffer<f32>, b: &Buffer<f32>, dots: &Buffer<f32>) {
        let params = RowDotsParams { rows: self.rows as u32, cols: self.cols as u32 };
        let buffers = [a.into(), b.into(), dots.into()];
        recorder.dispatch(&ROW_DOTS_KERNEL, &Variant::new(), &params, &buffers, self.rows.div_ceil(LANES));
    }
}

/// The variant of kernels with a lane per row.
fn rows_variant() -> Variant {
    Variant::new().constant_is("BLOCK", BLOCK as u32).constant_is("LANES", LANES as u32)
}

/// Random scales of either sign, and zeros.
fn random_grid(random: &mut Random, len: usize) -> Vec<f32> {
    let mut scale = || {
        let value = random.value();
        if value < 0.0 { value - 0.05 } else { value + 0.05 }
    };
    (0..len).flat_map(|i| [scale() * 0.2, (7 + i % 3) as f32]).collect()
}

fn random_codes(random: &mut Random, len: usize) -> Vec<f32> {
    (0..len).map(|_| random.below(16) as f32).collect()
}

/// A group's rows `[len, cols]` of a symmetric matrix with a dominant diagonal.
fn random_lines(random: &mut Random, cols: usize, group: usize, len: usize) -> Vec<f32> {
    let mut lines = random.values(len * cols);
    for i in 0..len {
        for j in 0..i {
            lines[i * cols + group * len + j] = lines[j * cols + group * len + i];
        }
        lines[i * cols + group * len + i] += len as f32 / 3.0;
    }
    lines
}

fn rank_update_cases(_: &Caps, set: CaseSet) -> Vec<Case> {
    let shapes: &[[usize; 4]] = match set {
        CaseSet::Test => &[[1, 64, 0, 32], [3, 96, 32, 32], [70, 160, 96, 32], [33, 224, 0, 128], [32, 64, 32, 64]],
        CaseSet::Bench => &[[3072, 8192, 0, 32], [8192, 3072, 0, 32]],
    };
    let case = |&[rows, cols, first, depth]: &[usize; 4]| Case {
        label: format!("{rows} x {cols} from {first}, depth {depth}"),
        variant: Variant::new(),
        flops: (2 * rows * (cols - first) * depth) as u64,
        bytes: 4 * (rows * depth + depth * cols + 2 * rows * (cols - first)) as u64,
        tolerance: 1e-10,
        buffers: Box::new(move || {
            let mut random = Random::new((rows + cols) as u64);
            let (a, b) = (random.values(rows * depth), random.values(depth * cols));
            vec![CaseBuffer::input(&a), CaseBuffer::input(&b), CaseBuffer::in_out(&random.values(rows * cols))]
        }),
        record: Box::new(move |recorder, b| {
            RankUpdate { rows, cols, first, depth }.record(recorder, &b[0].cast(), &b[1].cast(), &b[2].cast());
        }),
        reference: Box::new(move |b| {
            let mut y = b[2].values().to_vec();
            reference::rank_update(b[0].values(), b[1].values(), depth, first, cols, &mut y);
            vec![y]
        }),
    };
    shapes.iter().map(case).collect()
}

fn columns_cases(_: &Caps, set: CaseSet) -> Vec<Case> {
    let shapes: &[(usize, usize, usize, usize, bool)] = match set {
        CaseSet::Test => &[(1, 32, 0, 32, false), (70, 96, 32, 32, true), (64, 256, 224, 128, true)],
        CaseSet::Bench => &[(3072, 8192, 0, 32, true)],
    };
    let case = |&(rows, cols, start, group_len, corrected): &(usize, usize, usize, usize, bool)| Case {
        label: format!("{rows} x {cols} from {start}, groups of {group_len}, corrected {corrected}"),
        variant: rows_variant().flag_if("CORRECTED", corrected),
        flops: (rows * BLOCK * BLOCK * if corrected { 2 } else { 1 }) as u64,
        bytes: 4 * (4 * rows * BLOCK) as u64,
        tolerance: 1e-9,
        buffers: Box::new(move || {
            let mut random = Random::new((rows * cols) as u64);
            let weights = random.values(rows * cols);
            // A factor has a large diagonal.
            let mut lines = || random.values(BLOCK * cols).iter().map(|v| v * 0.1).collect::<Vec<_>>();
            let (mut factor, correction) = (lines(), lines());
            (0..BLOCK).for_each(|k| factor[k * cols + start + k] += 1.0);
            let mut perm: Vec<u32> = (0..cols as u32).collect();
            (1..cols).rev().for_each(|i| perm.swap(i, random.below(i + 1)));
            let grid = random_grid(&mut random, rows * cols / group_len);
            let mut buffers = vec![
                CaseBuffer::input(&weights),
                CaseBuffer::input(&factor),
                CaseBuffer::input(&correction),
                CaseBuffer::words(perm),
                CaseBuffer::input(&grid),
                CaseBuffer::in_out(&vec![0.0; rows * cols]),
                CaseBuffer::output(rows * BLOCK),
            ];
            if corrected {
                buffers.push(CaseBuffer::output(rows * BLOCK));
            }
            buffers
        }),
        record: Box::new(move |recorder, b| {
            let columns = Columns { rows, cols, start, group_len, max_code: 15 };
            let (correction, codes, errors) = (b[2].cast(), b[5].cast(), b[6].cast());
            let correction = corrected.then_some(&correction);
            let unrounded = corrected.then(|| b[7].cast());
            let out = ColumnsOut { codes: &codes, errors: &errors, unrounded: unrounded.as_ref() };
            columns.record(recorder, &b[0].cast(), &b[1].cast(), correction, &b[3], &b[4].cast(), &out);
        }),
        reference: Box::new(move |b| {
            let mut codes = b[5].values().to_vec();
            let (errors, unrounded) = reference::columns(
                b[0].values(),
                b[1].values(),
                corrected.then_some(b[2].values()),
                &b[3].words,
                b[4].values(),
                [cols, start, group_len],
                15.0,
                &mut codes,
            );
            let mut outputs = vec![codes, errors];
            outputs.extend(corrected.then_some(unrounded));
            outputs
        }),
    };
    shapes.iter().map(case).collect()
}

fn scales_cases(_: &Caps, set: CaseSet) -> Vec<Case> {
    let shapes: &[(usize, usize, usize, usize, u32)] = match set {
        CaseSet::Test => &[(1, 32, 0, 32, 0), (70, 96, 2, 32, 3), (65, 256, 1, 128, 0)],
        CaseSet::Bench => &[(3072, 8192, 7, 32, 0)],
    };
    let case = |&(rows, cols, group, len, coarse_bits): &(usize, usize, usize, usize, u32)| Case {
        label: format!("{rows} x {cols}, group {group} of {len}, {coarse_bits} coarse bits"),
        variant: rows_variant(),
        flops: (2 * rows * len * len) as u64,
        bytes: 4 * (3 * rows * len) as u64,
        // Devices may round the scale differently.
        tolerance: 1e-6,
        buffers: Box::new(move || {
            let mut random = Random::new((rows * cols) as u64);
            vec![
                CaseBuffer::input(&random.values(rows * cols)),
                CaseBuffer::input(&random_codes(&mut random, rows * cols)),
                CaseBuffer::input(&random_lines(&mut random, cols, group, len)),
                CaseBuffer::in_out(&random_grid(&mut random, rows * cols / len)),
                CaseBuffer::output(rows * len),
            ]
        }),
        record: Box::new(move |recorder, b| {
            let scales = Scales { rows, cols, group, len, coarse_bits };
            scales.record(recorder, &b[0].cast(), &b[1].cast(), &b[2].cast(), &b[3].cast(), &b[4].cast());
        }),
        reference: Box::new(move |b| {
            let mut grid = b[3].values().to_vec();
            let (residual, codes, lines) = (b[0].values(), b[1].values(), b[2].values());
            let changes = reference::scales(residual, codes, lines, [cols, group, len], coarse_bits, &mut grid);
            vec![grid, changes]
        }),
    };
    shapes.iter().map(case).collect()
}

fn codes_cases(_: &Caps, set: CaseSet) -> Vec<Case> {
    let shapes: &[(usize, usize, usize, usize, usize)] = match set {
        CaseSet::Test => &[(1, 32, 0, 32, 0), (70, 96, 2, 32, 0), (65, 256, 1, 128, 96)],
        CaseSet::Bench => &[(3072, 8192, 7, 32, 0)],
    };
    let case = |&(rows, cols, group, len, offset): &(usize, usize, usize, usize, usize)| Case {
        label: format!("{rows} x {cols}, group {group} of {len}, from {offset}"),
        variant: rows_variant(),
        flops: (2 * rows * BLOCK * BLOCK) as u64,
        bytes: 4 * (4 * rows * BLOCK) as u64,
        tolerance: 1e-9,
        buffers: Box::new(move || {
            let mut random = Random::new((rows * cols) as u64);
            vec![
                CaseBuffer::input(&random.values(rows * cols)),
                CaseBuffer::input(&random_lines(&mut random, cols, group, len)),
                CaseBuffer::input(&random_grid(&mut random, rows * cols / len)),
                CaseBuffer::in_out(&random_codes(&mut random, rows * cols)),
                CaseBuffer::output(rows * BLOCK),
            ]
        }),
        record: Box::new(move |recorder, b| {
            let codes = Codes { rows, cols, group, len, offset, max_code: 15 };
            codes.record(recorder, &b[0].cast(), &b[1].cast(), &b[2].cast(), &b[3].cast(), &b[4].cast());
        }),
        reference: Box::new(move |b| {
            let mut codes = b[3].values().to_vec();
            let (residual, lines, grid) = (b[0].values(), b[1].values(), b[2].values());
            let changes = reference::codes(residual, lines, grid, [cols, group, len, offset], 15.0, &mut codes);
            vec![codes, changes]
        }),
    };
    shapes.iter().map(case).collect()
}

fn errors_cases(_: &Caps, set: CaseSet) -> Vec<Case> {
    let shapes: &[(usize, usize, usize)] = match set {
        CaseSet::Test => &[(1, 32, 32), (5, 96, 32), (3, 256, 128)],
        CaseSet::Bench => &[(3072, 8192, 32)],
    };
    let case = |&(rows, cols, group_len): &(usize, usize, usize)| Case {
        label: format!("{rows} x {cols}, groups of {group_len}"),
        variant: Variant::new(),
        flops: (3 * rows * cols) as u64,
        bytes: 4 * (3 * rows * cols) as u64,
        tolerance: 1e-10,
        buffers: Box::new(move || {
            let mut random = Random::new((rows * cols) as u64);
            vec![
                CaseBuffer::input(&random.values(rows * cols)),
                CaseBuffer::input(&random_codes(&mut random, rows * cols)),
                CaseBuffer::input(&random_grid(&mut random, rows * cols / group_len)),
                CaseBuffer::output(rows * cols),
            ]
        }),
        record: Box::new(move |recorder, b| {
            let errors = Errors { rows, cols, group_len };
            errors.record(recorder, &b[0].cast(), &b[1].cast(), &b[2].cast(), &b[3].cast());
        }),
        reference: Box::new(move |b| {
            vec![reference::errors(b[0].values(), b[1].values(), b[2].values(), cols, group_len)]
        }),
    };
    shapes.iter().map(case).collect()
}

fn row_dots_cases(_: &Caps, set: CaseSet) -> Vec<Case> {
    let shapes: &[(usize, usize)] = match set {
        CaseSet::Test => &[(1, 4), (65, 100), (3, 2052)],
        CaseSet::Bench => &[(3072, 8192)],
    };
    let case = |&(rows, cols): &(usize, usize)| Case {
        label: format!("{rows} x {cols}"),
        variant: Variant::new(),
        flops: (2 * rows * cols) as u64,
        bytes: 4 * (2 * rows * cols) as u64,
        tolerance: 1e-10,
        buffers: Box::new(move || {
            let mut random = Random::new((rows * cols) as u64);
            let (a, b) = (random.values(rows * cols), random.values(rows * cols));
            vec![CaseBuffer::input(&a), CaseBuffer::input(&b), CaseBuffer::output(rows)]
        }),
        record: Box::new(move |recorder, b| {
            RowDots { rows, cols }.record(recorder, &b[0].cast(), &b[1].cast(), &b[2].cast());
        }),
        reference: Box::new(move |b| vec![reference::row_dots(b[0].values(), b[1].values(), cols)]),
    };
    shapes.iter().map(case).collect()
}
