//! `x[i] = cap * tanh(x[i] / cap)`: keeps logits between `-cap` and `cap`. [`crate::attention`] caps scores by the same function.

mod reference;

use crate::{
    Case, CaseSet, Kernel, Variant,
    cases::Random,
    gpu::{Buffer, Caps, Recorder},
    kernel::{Access, CaseBuffer, Params, params},
};

pub use reference::soft_cap;

/// `x[i] = cap * tanh(x[i] / cap)`.
pub struct SoftCap {
    /// Number of elements.
    pub len: usize,
    /// Bound of the results.
    pub cap: f32,
}

params! { struct SoftCapParams { len: u32, cap: f32 } }

const WORKGROUP: usize = 256;

/// The kernel's record.
pub static KERNEL: Kernel = Kernel {
    name: "soft_cap",
    wgsl: include_str!("soft_cap.wgsl"),
    bindings: &[Access::ReadWrite],
    params: SoftCapParams::LAYOUT,
    cases,
    ..Kernel::DEFAULTS
};

impl SoftCap {
    /// `x`: `[len]`.
    pub fn record(&self, recorder: &mut Recorder, x: &Buffer<f32>) {
        let params = SoftCapParams { len: self.len as u32, cap: self.cap };
        recorder.dispatch(&KERNEL, &variant(), &params, &[x.into()], self.len.div_ceil(WORKGROUP));
    }
}

fn variant() -> Variant {
    Variant::new().constant_is("WORKGROUP", WORKGROUP as u32)
}

fn cases(_: &Caps, set: CaseSet) -> Vec<Case> {
    let shapes: &[(usize, f32)] = match set {
        CaseSet::Test => &[(1, 30.0), (577, 30.0), (4096, 50.0), (1000, 1.0), (49_152, 30.0)],
        CaseSet::Bench => &[(256_000, 30.0)],
    };
    let case = |&(len, cap): &(usize, f32)| Case {
        label: format!("{len} to {cap}"),
        variant: variant(),
        flops: 6 * len as u64,
        bytes: 8 * len as u64,
        tolerance: 1e-10,
        buffers: Box::new(move || {
            // From values that the cap does not change to values whose naive tanh overflows.
            let mut x = Random::new(len as u64).values(len);
            let sizes = [0.01, 1.0, 30.0, 1e3, 1e6];
            x.iter_mut().enumerate().for_each(|(i, v)| *v *= sizes[i % sizes.len()]);
            vec![CaseBuffer::in_out(&x)]
        }),
        record: Box::new(move |recorder, b| SoftCap { len, cap }.record(recorder, &b[0].cast())),
        reference: Box::new(move |buffers| {
            let mut x = buffers[0].values().to_vec();
            soft_cap(&mut x, cap);
            vec![x]
        }),
    };
    shapes.iter().map(case).collect()
}
