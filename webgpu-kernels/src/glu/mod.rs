//! `y[r, i] = act(gate_up[r, i]) * gate_up[r, inner + i]`: the gated linear unit of the feed-forward, over the
//! joined output of its two projections. With SiLU it is called SwiGLU, with GELU (flag `gelu`) GeGLU.

mod reference;

use model_format::decoder_config::Activation;

use crate::{
    Case, CaseSet, Kernel, Variant,
    cases::Random,
    gpu::{Buffer, Caps, Recorder},
    kernel::{Access, CaseBuffer, Params, params, product},
};

pub use reference::glu;

/// `y[r, i] = act(gate_up[r, i]) * gate_up[r, inner + i]`.
pub struct Glu {
    /// Rows, one per token.
    pub rows: usize,
    /// Columns of `y`.
    pub inner: usize,
    /// Activation of the gate.
    pub activation: Activation,
}

params! { struct GluParams { len: u32, inner: u32 } }

const WORKGROUP: usize = 256;

/// The kernel's record.
pub static KERNEL: Kernel = Kernel {
    name: "glu",
    wgsl: include_str!("glu.wgsl"),
    bindings: &[Access::Read, Access::ReadWrite],
    params: GluParams::LAYOUT,
    cases,
    ..Kernel::DEFAULTS
};

impl Glu {
    /// `gate_up`: [rows, 2 * inner]. `y`: [rows, inner].
    pub fn record(&self, recorder: &mut Recorder, gate_up: &Buffer<f32>, y: &Buffer<f32>) {
        let len = self.rows * self.inner;
        let params = GluParams { len: len as u32, inner: self.inner as u32 };
        let variant = variant(self.activation);
        recorder.dispatch(&KERNEL, &variant, &params, &[gate_up.into(), y.into()], len.div_ceil(WORKGROUP));
    }
}

fn variant(activation: Activation) -> Variant {
    let is_gelu = activation == Activation::GeluTanh;
    Variant::new().constant_is("WORKGROUP", WORKGROUP as u32).flag_if("GELU", is_gelu)
}

fn cases(_: &Caps, set: CaseSet) -> Vec<Case> {
    let shapes: &[(usize, usize)] = match set {
        CaseSet::Test => &[(1, 1536), (3, 77), (17, 352), (1, 8192), (64, 96), (2, 1), (5, 4864), (33, 257)],
        CaseSet::Bench => &[(1, 8192), (512, 8192)],
    };
    let case = |(rows, inner): (usize, usize), activation| Case {
        label: format!("{rows} x {inner}"),
        variant: variant(activation),
        flops: product(&[5, rows, inner]),
        bytes: 12 * (rows * inner) as u64,
        tolerance: 1e-10,
        buffers: Box::new(move || {
            // Wide enough for both ends of the sigmoid, where exp overflows, and for the curved part of GELU.
            let mut gate_up = Random::new(inner as u64).values(rows * 2 * inner);
            gate_up.iter_mut().step_by(3).for_each(|v| *v *= 100.0);
            gate_up.iter_mut().skip(1).step_by(3).for_each(|v| *v *= 4.0);
            vec![CaseBuffer::input(&gate_up), CaseBuffer::output(rows * inner)]
        }),
        record: Box::new(move |recorder, b| {
            Glu { rows, inner, activation }.record(recorder, &b[0].cast(), &b[1].cast());
        }),
        reference: Box::new(move |buffers| {
            let mut y = vec![0.0; rows * inner];
            glu(buffers[0].values(), activation, inner, &mut y);
            vec![y]
        }),
    };
    let both = [Activation::Silu, Activation::GeluTanh];
    shapes.iter().flat_map(|&shape| both.map(|activation| case(shape, activation))).collect()
}
