//! `y[i] = x[i]`: measures the bandwidth that a kernel can reach ([`crate::Gpu::copy_bandwidth`]).

use crate::{
    Case, CaseSet, Kernel, Variant,
    cases::Random,
    gpu::{Buffer, Caps, Recorder},
    kernel::{Access, CaseBuffer, Params, Usage, params},
};

/// `y[i] = x[i]`.
pub struct Copy {
    /// Number of words, a multiple of four.
    pub len: usize,
}

params! { struct CopyParams { quads: u32 } }

const WORKGROUP: usize = 256;

/// The kernel's record.
pub static KERNEL: Kernel = Kernel {
    name: "copy",
    wgsl: include_str!("copy.wgsl"),
    bindings: &[Access::Read, Access::ReadWrite],
    params: CopyParams::LAYOUT,
    cases,
    usage: Usage::Offline,
    ..Kernel::DEFAULTS
};

impl Copy {
    /// `x`, `y`: `[len]`.
    pub fn record(&self, recorder: &mut Recorder, x: &Buffer<u32>, y: &Buffer<u32>) {
        assert!(self.len.is_multiple_of(4), "copy: {} words, not a multiple of 4", self.len);
        let params = CopyParams { quads: (self.len / 4) as u32 };
        let groups = (self.len / 4).div_ceil(WORKGROUP);
        recorder.dispatch(&KERNEL, &variant(), &params, &[x.into(), y.into()], groups);
    }
}

fn variant() -> Variant {
    Variant::new().constant_is("WORKGROUP", WORKGROUP as u32)
}

fn cases(_: &Caps, set: CaseSet) -> Vec<Case> {
    let lens: &[usize] = match set {
        CaseSet::Test => &[4, 4 * 577, 1 << 18],
        CaseSet::Bench => &[1 << 16, 1 << 25],
    };
    let case = |&len: &usize| Case {
        label: format!("{len}"),
        variant: variant(),
        flops: 0,
        bytes: 8 * len as u64,
        tolerance: 0.0,
        buffers: Box::new(move || {
            vec![CaseBuffer::input(&Random::new(len as u64).values(len)), CaseBuffer::output(len)]
        }),
        record: Box::new(move |recorder, b| Copy { len }.record(recorder, &b[0], &b[1])),
        reference: Box::new(|buffers| vec![buffers[0].values().to_vec()]),
    };
    lens.iter().map(case).collect()
}
