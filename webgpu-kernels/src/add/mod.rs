//! `x[i] += y[i]`: the residual connection, where it is not fused into the norm after it ([`crate::rms_norm`]).

mod reference;

use crate::{
    Case, CaseSet, Kernel, Variant,
    cases::Random,
    gpu::{Buffer, Caps, Recorder},
    kernel::{Access, CaseBuffer, Params, params},
};

pub use reference::add;

/// `x[i] += y[i]`.
pub struct Add {
    /// Number of elements.
    pub len: usize,
}

params! { struct AddParams { len: u32 } }

const WORKGROUP: usize = 256;

/// The kernel's record.
pub static KERNEL: Kernel = Kernel {
    name: "add",
    wgsl: include_str!("add.wgsl"),
    bindings: &[Access::ReadWrite, Access::Read],
    params: AddParams::LAYOUT,
    cases,
};

impl Add {
    /// `x`, `y`: `[len]`.
    pub fn record(&self, recorder: &mut Recorder, x: &Buffer<f32>, y: &Buffer<f32>) {
        let params = AddParams { len: self.len as u32 };
        let groups = self.len.div_ceil(WORKGROUP);
        recorder.dispatch(&KERNEL, &variant(), &params, &[x.into(), y.into()], groups);
    }
}

fn variant() -> Variant {
    Variant::new().constant_is("WORKGROUP", WORKGROUP as u32)
}

fn cases(_: &Caps, set: CaseSet) -> Vec<Case> {
    let lens: &[usize] = match set {
        // The last one wraps into the second dimension of workgroups.
        CaseSet::Test => &[1, 576, 3 * 577, 65_535 * WORKGROUP + 1000],
        CaseSet::Bench => &[3072, 512 * 3072],
    };
    let case = |&len: &usize| Case {
        label: format!("{len}"),
        variant: variant(),
        flops: len as u64,
        bytes: 12 * len as u64,
        tolerance: 1e-12,
        buffers: Box::new(move || {
            let mut random = Random::new(len as u64);
            vec![CaseBuffer::in_out(&random.values(len)), CaseBuffer::input(&random.values(len))]
        }),
        record: Box::new(move |recorder, b| Add { len }.record(recorder, &b[0].cast(), &b[1].cast())),
        reference: Box::new(|buffers| {
            let mut x = buffers[0].values().to_vec();
            add(&mut x, buffers[1].values());
            vec![x]
        }),
    };
    lens.iter().map(case).collect()
}
