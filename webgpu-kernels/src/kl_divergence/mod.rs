//! `divergences[r] = sum over c of p[c] * (ln p[c] - ln q[c])`, where p and q are the softmax of two rows of logits: the difference
//! between two models' predictions, in nats.

mod reference;

use crate::{
    Case, CaseSet, Kernel, Variant,
    cases::Random,
    gpu::{Buffer, Caps, Recorder},
    kernel::{Access, CaseBuffer, Params, Usage, params, product},
};

pub use reference::kl_divergence;

/// `divergences[r] = sum over c of p[c] * (ln p[c] - ln q[c])`.
pub struct KlDivergence {
    /// Rows of logits.
    pub rows: usize,
    /// Columns, the vocabulary.
    pub cols: usize,
}

params! { struct KlDivergenceParams { rows: u32, cols: u32 } }

const WORKGROUP: u32 = 256;

/// The kernel's record.
pub static KERNEL: Kernel = Kernel {
    name: "kl_divergence",
    wgsl: include_str!("kl_divergence.wgsl"),
    bindings: &[Access::Read, Access::Read, Access::ReadWrite],
    params: KlDivergenceParams::LAYOUT,
    cases,
    usage: Usage::Offline,
    ..Kernel::DEFAULTS
};

impl KlDivergence {
    /// `x`: [rows, cols], logits of p. `y`: [rows, cols], logits of q. `divergences`: `[rows]`.
    pub fn record(&self, recorder: &mut Recorder, x: &Buffer<f32>, y: &Buffer<f32>, divergences: &Buffer<f32>) {
        let params = KlDivergenceParams { rows: self.rows as u32, cols: self.cols as u32 };
        recorder.dispatch(&KERNEL, &variant(), &params, &[x.into(), y.into(), divergences.into()], self.rows);
    }
}

fn variant() -> Variant {
    Variant::new().constant_is("WORKGROUP", WORKGROUP)
}

fn cases(_: &Caps, set: CaseSet) -> Vec<Case> {
    // Rows, columns, range of p's logits, and largest difference of q's logits from them.
    let shapes: &[(usize, usize, f32, f32)] = match set {
        CaseSet::Test => &[(1, 1, 1.0, 1.0), (3, 300, 10.0, 0.3), (5, 49_152, 30.0, 1.0), (2, 1000, 8.0, 8.0)],
        CaseSet::Bench => &[(256, 128_256, 10.0, 0.3)],
    };
    let case = |&(rows, cols, spread, change): &(usize, usize, f32, f32)| Case {
        label: format!("{rows} x {cols}, up to {spread}, changed by {change}"),
        variant: variant(),
        flops: product(&[10, rows, cols]),
        bytes: 4 * (4 * rows * cols + rows) as u64,
        tolerance: 1e-9,
        buffers: Box::new(move || {
            let mut random = Random::new(cols as u64);
            let x: Vec<f32> = random.values(rows * cols).iter().map(|v| v * spread).collect();
            let y: Vec<f32> = random.values(rows * cols).iter().zip(&x).map(|(v, x)| x + v * change).collect();
            vec![CaseBuffer::input(&x), CaseBuffer::input(&y), CaseBuffer::output(rows)]
        }),
        record: Box::new(move |recorder, b| {
            KlDivergence { rows, cols }.record(recorder, &b[0].cast(), &b[1].cast(), &b[2].cast());
        }),
        reference: Box::new(move |b| {
            let rows = b[0].values().chunks(cols).zip(b[1].values().chunks(cols));
            vec![rows.map(|(x, y)| kl_divergence(x, y)).collect()]
        }),
    };
    shapes.iter().map(case).collect()
}
