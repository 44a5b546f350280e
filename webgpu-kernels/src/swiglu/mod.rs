//! `y[r, i] = silu(gate_up[r, i]) * gate_up[r, inner + i]` with `silu(v) = v / (1 + exp(-v))`: the gate of the
//! feed-forward, over the joined output of its two projections.

mod reference;

use crate::{
    Case, CaseSet, Kernel, Variant,
    cases::Random,
    gpu::{Buffer, Caps, Recorder},
    kernel::{Access, CaseBuffer, Params, params},
};

pub use reference::swiglu;

/// `y[r, i] = silu(gate_up[r, i]) * gate_up[r, inner + i]`.
pub struct Swiglu {
    /// Rows, one per token.
    pub rows: usize,
    /// Columns of `y`.
    pub inner: usize,
}

params! { struct SwigluParams { len: u32, inner: u32 } }

const WORKGROUP: usize = 256;

/// The kernel's record.
pub static KERNEL: Kernel = Kernel {
    name: "swiglu",
    wgsl: include_str!("swiglu.wgsl"),
    bindings: &[Access::Read, Access::ReadWrite],
    params: SwigluParams::LAYOUT,
    cases,
};

impl Swiglu {
    /// `gate_up`: [rows, 2 * inner]. `y`: [rows, inner].
    pub fn record(&self, recorder: &mut Recorder, gate_up: &Buffer<f32>, y: &Buffer<f32>) {
        let len = self.rows * self.inner;
        let params = SwigluParams { len: len as u32, inner: self.inner as u32 };
        recorder.dispatch(&KERNEL, &variant(), &params, &[gate_up.into(), y.into()], len.div_ceil(WORKGROUP));
    }
}

fn variant() -> Variant {
    Variant::new().constant_is("WORKGROUP", WORKGROUP as u32)
}

fn cases(_: &Caps, set: CaseSet) -> Vec<Case> {
    let shapes: &[(usize, usize)] = match set {
        CaseSet::Test => &[(1, 1536), (3, 77), (17, 352), (1, 8192)],
        CaseSet::Bench => &[(1, 8192), (512, 8192)],
    };
    let case = |&(rows, inner): &(usize, usize)| Case {
        label: format!("{rows} x {inner}"),
        variant: variant(),
        flops: 5 * (rows * inner) as u64,
        bytes: 12 * (rows * inner) as u64,
        tolerance: 1e-10,
        buffers: Box::new(move || {
            // Wide enough for both ends of the sigmoid, where exp overflows.
            let mut gate_up = Random::new(inner as u64).values(rows * 2 * inner);
            gate_up.iter_mut().step_by(3).for_each(|v| *v *= 100.0);
            vec![CaseBuffer::input(&gate_up), CaseBuffer::output(rows * inner)]
        }),
        record: Box::new(move |recorder, b| Swiglu { rows, inner }.record(recorder, &b[0].cast(), &b[1].cast())),
        reference: Box::new(move |buffers| {
            let mut y = vec![0.0; rows * inner];
            swiglu(buffers[0].values(), inner, &mut y);
            vec![y]
        }),
    };
    shapes.iter().map(case).collect()
}
