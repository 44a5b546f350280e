//! `y[r] = argmax_c x[r, c]`, for greedy sampling. The lowest `c` wins a tie. Only the id travels to the host.
//!
//! A long row is split among workgroups. A second kernel reduces their results.

mod reference;

use crate::{
    Case, CaseSet, Kernel, Variant,
    cases::Random,
    gpu::{Buffer, Caps, Recorder},
    kernel::{Access, CaseBuffer, Params, Purpose, Usage, params, product},
};

pub use reference::argmax;

/// `y[r] = argmax_c x[r, c]`. NaN is never the largest. A row of NaN gives 0.
pub struct Argmax {
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
}

params! { struct ArgmaxParams { rows: u32, cols: u32, splits: u32 } }

const WORKGROUP: u32 = 256;
/// Columns of a lane.
const STEPS: u32 = 8;
/// Columns of a split.
const SPAN: u32 = WORKGROUP * STEPS;

/// The kernel's record.
pub static KERNEL: Kernel = Kernel {
    name: "argmax",
    wgsl: include_str!("argmax.wgsl"),
    bindings: &[Access::Read, Access::ReadWrite],
    params: ArgmaxParams::LAYOUT,
    cases,
    usage: Usage::Answer,
    ..Kernel::DEFAULTS
};

/// The record of the reduction over the splits of a row.
pub static JOIN_KERNEL: Kernel = Kernel {
    name: "argmax_join",
    wgsl: KERNEL.wgsl,
    bindings: &[Access::Read, Access::ReadWrite, Access::Read],
    params: ArgmaxParams::LAYOUT,
    cases: join_cases,
    usage: Usage::Answer,
    ..Kernel::DEFAULTS
};

impl Argmax {
    /// `x`: [rows, cols]. `y`: `[rows]`.
    pub fn record(&self, recorder: &mut Recorder, x: &Buffer<f32>, y: &Buffer<u32>) {
        let splits = self.splits();
        if splits == 1 {
            return self.record_splits(recorder, x, y);
        }
        let candidates = recorder.temporary(self.rows * splits);
        self.record_splits(recorder, x, &candidates);
        self.record_join(recorder, x, &candidates, y);
    }

    fn splits(&self) -> usize {
        self.cols.div_ceil(SPAN as usize)
    }

    fn params(&self) -> ArgmaxParams {
        ArgmaxParams { rows: self.rows as u32, cols: self.cols as u32, splits: self.splits() as u32 }
    }

    /// `y`: [rows, splits].
    fn record_splits(&self, recorder: &mut Recorder, x: &Buffer<f32>, y: &Buffer<u32>) {
        let groups = self.rows * self.splits();
        recorder.dispatch(&KERNEL, &variant(), &self.params(), &[x.into(), y.into()], groups);
    }

    fn record_join(&self, recorder: &mut Recorder, x: &Buffer<f32>, candidates: &Buffer<u32>, y: &Buffer<u32>) {
        recorder.expect_bytes(8 * (self.rows * self.splits()) as u64);
        let buffers = [x.into(), y.into(), candidates.into()];
        recorder.dispatch(&JOIN_KERNEL, &variant().flag("JOIN"), &self.params(), &buffers, self.rows);
    }
}

fn variant() -> Variant {
    Variant::new().constant_is("WORKGROUP", WORKGROUP).constant_is("STEPS", STEPS).constant_is("SPAN", SPAN)
}

fn cases(_: &Caps, set: CaseSet) -> Vec<Case> {
    let shapes: &[(usize, usize)] = match set {
        CaseSet::Test => &[(1, 49_152), (3, 5000), (3, 1000), (2, 77), (1, 1), (4, 32_000), (3, 256), (1, 151_936)],
        CaseSet::Bench => &[(1, 128_256)],
    };
    let case = |&(rows, cols): &(usize, usize)| Case {
        label: format!("{rows} x {cols}"),
        variant: variant(),
        flops: product(&[rows, cols]),
        bytes: (4 * rows * cols) as u64,
        tolerance: 0.0,
        buffers: Box::new(move || {
            let mut x = Random::new(cols as u64).values(rows * cols);
            // Ties, only negative values, and NaN.
            for (r, row) in x.chunks_exact_mut(cols).enumerate() {
                match r {
                    0 => (row[cols / 2], row[cols - 1]) = (2.0, 2.0),
                    1 => row.iter_mut().for_each(|v| *v = -v.abs() - 1.0),
                    _ => row[0] = f32::NAN,
                }
            }
            let y = CaseBuffer { words: vec![u32::MAX; rows], purpose: Purpose::U32 };
            vec![CaseBuffer::input(&x), y]
        }),
        record: Box::new(move |recorder, b| Argmax { rows, cols }.record(recorder, &b[0].cast(), &b[1])),
        reference: Box::new(move |b| {
            let mut y = vec![0; rows];
            argmax(b[0].values(), cols, &mut y);
            vec![y.into_iter().map(|c| c as f32).collect()]
        }),
    };
    shapes.iter().map(case).collect()
}

fn join_cases(_: &Caps, set: CaseSet) -> Vec<Case> {
    let shapes: &[(usize, usize)] = match set {
        CaseSet::Test => &[(1, 49_152), (2, 600_000), (5, 32_000)],
        CaseSet::Bench => &[(1, 128_256)],
    };
    let case = |&(rows, cols): &(usize, usize)| Case {
        label: format!("{rows} x {cols}"),
        variant: variant().flag("JOIN"),
        flops: 0,
        bytes: (8 * rows * cols.div_ceil(SPAN as usize)) as u64,
        tolerance: 0.0,
        buffers: Box::new(move || {
            let splits = cols.div_ceil(SPAN as usize);
            let mut random = Random::new(rows as u64);
            let x = random.values(rows * cols);
            let candidates = (0..rows * splits).map(|_| random.below(cols) as u32).collect();
            let y = CaseBuffer { words: vec![u32::MAX; rows], purpose: Purpose::U32 };
            vec![CaseBuffer::input(&x), y, CaseBuffer::words(candidates)]
        }),
        record: Box::new(move |recorder, b| Argmax { rows, cols }.record_join(recorder, &b[0].cast(), &b[2], &b[1])),
        reference: Box::new(move |b| {
            let rows = b[0].values().chunks_exact(cols).zip(b[2].words.chunks_exact(b[2].words.len() / rows));
            let best = |(x, candidates): (&[f32], &[u32])| {
                let larger = |a: u32, b: u32| if x[b as usize] > x[a as usize] { b } else { a };
                candidates.iter().copied().reduce(larger).expect("a candidate") as f32
            };
            vec![rows.map(best).collect()]
        }),
    };
    shapes.iter().map(case).collect()
}
