//! `y[r, c] = x[r, c] / sqrt(mean_c(x[r, c]^2) + eps) * weight[c]`: root mean square normalization.
//!
//! [`AddRmsNorm`] first adds the output of the previous projection to `x`, which saves one pass over memory. With subgroups, the
//! sum is reduced within subgroups first. Without them, the workgroup reduces it in a tree.

mod reference;

use crate::{
    Case, CaseSet, Kernel, Variant,
    cases::{Random, with_outliers},
    gpu::{Buffer, Caps, Recorder},
    kernel::{Access, CaseBuffer, Params, params, product},
};

pub use reference::{add_rms_norm, rms_norm};

/// `y[r, c] = x[r, c] / sqrt(mean_c(x[r, c]^2) + eps) * weight[c]`.
pub struct RmsNorm {
    /// Rows, one per token.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Added to the mean square before the square root.
    pub eps: f32,
}

/// `x += addend`, then [`RmsNorm`].
pub struct AddRmsNorm {
    /// Rows, one per token.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Added to the mean square before the square root.
    pub eps: f32,
}

params! { struct RmsNormParams { rows: u32, cols: u32, eps: f32 } }

const WORKGROUP: u32 = 256;

/// The record of [`RmsNorm`].
pub static KERNEL: Kernel = Kernel {
    name: "rms_norm",
    wgsl: include_str!("rms_norm.wgsl"),
    bindings: &[Access::Read, Access::Read, Access::ReadWrite],
    params: RmsNormParams::LAYOUT,
    cases,
    ..Kernel::DEFAULTS
};

/// The record of [`AddRmsNorm`].
pub static ADD_KERNEL: Kernel = Kernel {
    name: "add_rms_norm",
    wgsl: include_str!("rms_norm.wgsl"),
    bindings: &[Access::ReadWrite, Access::Read, Access::ReadWrite, Access::Read],
    params: RmsNormParams::LAYOUT,
    cases: add_cases,
    ..Kernel::DEFAULTS
};

impl RmsNorm {
    /// `x`, `y`: [rows, cols]. `weight`: `[cols]`.
    pub fn record(&self, recorder: &mut Recorder, x: &Buffer<f32>, weight: &Buffer<f32>, y: &Buffer<f32>) {
        let params = RmsNormParams { rows: self.rows as u32, cols: self.cols as u32, eps: self.eps };
        let variant = variant(recorder.gpu().caps());
        recorder.dispatch(&KERNEL, &variant, &params, &[x.into(), weight.into(), y.into()], self.rows);
    }
}

impl AddRmsNorm {
    /// `x`, `addend`, `y`: [rows, cols]. `weight`: `[cols]`.
    pub fn record(
        &self,
        recorder: &mut Recorder,
        x: &Buffer<f32>,
        addend: &Buffer<f32>,
        weight: &Buffer<f32>,
        y: &Buffer<f32>,
    ) {
        let params = RmsNormParams { rows: self.rows as u32, cols: self.cols as u32, eps: self.eps };
        let variant = variant(recorder.gpu().caps()).flag("ADD");
        let buffers = [x.into(), weight.into(), y.into(), addend.into()];
        recorder.dispatch(&ADD_KERNEL, &variant, &params, &buffers, self.rows);
    }
}

fn variant(caps: &Caps) -> Variant {
    Variant::new().constant_is("WORKGROUP", WORKGROUP).subgroups(caps)
}

fn shapes(set: CaseSet) -> &'static [(usize, usize)] {
    match set {
        CaseSet::Test => &[
            (1, 576),
            (1, 3072),
            (7, 2048),
            (3, 77),
            (2, 8192),
            (5, 4),
            (4, 896),
            (33, 256),
            (2, 257),
            (1, 1),
            (6, 1024),
            (1, 5120),
        ],
        CaseSet::Bench => &[(1, 3072), (512, 3072)],
    }
}

/// Random values. Even numbers of rows have outliers.
fn activations(rows: usize, cols: usize, random: &mut Random) -> Vec<f32> {
    let values = random.values(rows * cols);
    if rows.is_multiple_of(2) { with_outliers(values) } else { values }
}

fn cases(caps: &Caps, set: CaseSet) -> Vec<Case> {
    let caps = *caps;
    let case = |&(rows, cols): &(usize, usize)| Case {
        label: format!("{rows} x {cols}"),
        variant: variant(&caps),
        flops: product(&[4, rows, cols]),
        bytes: 4 * (2 * rows * cols + cols) as u64,
        tolerance: 1e-10,
        buffers: Box::new(move || {
            let mut random = Random::new(cols as u64);
            let (x, weight) = (activations(rows, cols, &mut random), random.values(cols));
            vec![CaseBuffer::input(&x), CaseBuffer::input(&weight), CaseBuffer::output(rows * cols)]
        }),
        record: Box::new(move |recorder, b| {
            let norm = RmsNorm { rows, cols, eps: 1e-5 };
            norm.record(recorder, &b[0].cast(), &b[1].cast(), &b[2].cast());
        }),
        reference: Box::new(move |b| {
            let mut y = vec![0.0; rows * cols];
            rms_norm(b[0].values(), b[1].values(), 1e-5, &mut y);
            vec![y]
        }),
    };
    shapes(set).iter().map(case).collect()
}

fn add_cases(caps: &Caps, set: CaseSet) -> Vec<Case> {
    let caps = *caps;
    let case = |&(rows, cols): &(usize, usize)| Case {
        label: format!("{rows} x {cols}"),
        variant: variant(&caps).flag("ADD"),
        flops: product(&[5, rows, cols]),
        bytes: 4 * (4 * rows * cols + cols) as u64,
        tolerance: 1e-10,
        buffers: Box::new(move || {
            let mut random = Random::new(cols as u64 + 1);
            let (x, addend) = (activations(rows, cols, &mut random), random.values(rows * cols));
            let weight = CaseBuffer::input(&random.values(cols));
            vec![CaseBuffer::in_out(&x), CaseBuffer::input(&addend), weight, CaseBuffer::output(rows * cols)]
        }),
        record: Box::new(move |recorder, b| {
            let norm = AddRmsNorm { rows, cols, eps: 1e-5 };
            norm.record(recorder, &b[0].cast(), &b[1].cast(), &b[2].cast(), &b[3].cast());
        }),
        reference: Box::new(move |b| {
            let (mut x, mut y) = (b[0].values().to_vec(), vec![0.0; rows * cols]);
            add_rms_norm(&mut x, b[1].values(), b[2].values(), 1e-5, &mut y);
            vec![x, y]
        }),
    };
    shapes(set).iter().map(case).collect()
}
