//! `losses[r] = ln(sum over c of exp(x[r, c])) - x[r, targets[r]]`: the loss of a token, in nats.

mod reference;

use crate::{
    Case, CaseSet, Kernel, Variant,
    cases::Random,
    gpu::{Buffer, Caps, Recorder},
    kernel::{Access, CaseBuffer, Params, Usage, params, product},
};

pub use reference::cross_entropy;

/// `losses[r] = ln(sum over c of exp(x[r, c])) - x[r, targets[r]]`.
pub struct CrossEntropy {
    /// Rows of logits.
    pub rows: usize,
    /// Columns, the vocabulary.
    pub cols: usize,
}

params! { struct CrossEntropyParams { rows: u32, cols: u32 } }

const WORKGROUP: u32 = 256;

/// The kernel's record.
pub static KERNEL: Kernel = Kernel {
    name: "cross_entropy",
    wgsl: include_str!("cross_entropy.wgsl"),
    bindings: &[Access::Read, Access::Read, Access::ReadWrite],
    params: CrossEntropyParams::LAYOUT,
    cases,
    usage: Usage::Offline,
    ..Kernel::DEFAULTS
};

impl CrossEntropy {
    /// `x`: [rows, cols]. `targets`: `[rows]`, each below `cols`. `losses`: `[rows]`.
    pub fn record(&self, recorder: &mut Recorder, x: &Buffer<f32>, targets: &Buffer<u32>, losses: &Buffer<f32>) {
        let params = CrossEntropyParams { rows: self.rows as u32, cols: self.cols as u32 };
        recorder.dispatch(&KERNEL, &variant(), &params, &[x.into(), targets.into(), losses.into()], self.rows);
    }
}

fn variant() -> Variant {
    Variant::new().constant_is("WORKGROUP", WORKGROUP)
}

fn cases(_: &Caps, set: CaseSet) -> Vec<Case> {
    // Rows, columns, and range of the logits.
    let shapes: &[(usize, usize, f32)] = match set {
        CaseSet::Test => &[(1, 1, 1.0), (3, 300, 10.0), (5, 49_152, 30.0), (2, 1000, 1e5)],
        CaseSet::Bench => &[(256, 128_256, 10.0)],
    };
    let case = |&(rows, cols, spread): &(usize, usize, f32)| Case {
        label: format!("{rows} x {cols}, up to {spread}"),
        variant: variant(),
        flops: product(&[4, rows, cols]),
        bytes: 4 * (rows * cols + 2 * rows) as u64,
        tolerance: 1e-10,
        buffers: Box::new(move || {
            let mut random = Random::new(cols as u64);
            let x: Vec<f32> = random.values(rows * cols).iter().map(|v| v * spread).collect();
            let targets = (0..rows).map(|_| random.below(cols) as u32).collect();
            vec![CaseBuffer::input(&x), CaseBuffer::words(targets), CaseBuffer::output(rows)]
        }),
        record: Box::new(move |recorder, b| {
            CrossEntropy { rows, cols }.record(recorder, &b[0].cast(), &b[1].cast(), &b[2].cast());
        }),
        reference: Box::new(move |b| {
            let losses = b[0].values().chunks(cols).zip(&b[1].words).map(|(x, &target)| cross_entropy(x, target));
            vec![losses.collect()]
        }),
    };
    shapes.iter().map(case).collect()
}
