//! `x[r, c] += y[c]`: adds a bias. With one row it is a residual connection that is not fused into the next norm
//! ([`crate::rms_norm`]).

mod reference;

use crate::{
    Case, CaseSet, Kernel, Variant,
    cases::Random,
    gpu::{Buffer, Caps, Recorder},
    kernel::{Access, CaseBuffer, Params, params, product},
};

pub use reference::add;

/// `x[r, c] += y[c]`.
pub struct Add {
    /// Rows of `x`.
    pub rows: usize,
    /// Columns of `x`, elements of `y`.
    pub cols: usize,
}

params! { struct AddParams { len: u32, cols: u32 } }

const WORKGROUP: usize = 256;

/// The kernel's record.
pub static KERNEL: Kernel = Kernel {
    name: "add",
    wgsl: include_str!("add.wgsl"),
    bindings: &[Access::ReadWrite, Access::Read],
    params: AddParams::LAYOUT,
    cases,
    ..Kernel::DEFAULTS
};

impl Add {
    /// `x`: [rows, cols]. `y`: `[cols]`.
    pub fn record(&self, recorder: &mut Recorder, x: &Buffer<f32>, y: &Buffer<f32>) {
        let len = self.rows * self.cols;
        let params = AddParams { len: len as u32, cols: self.cols as u32 };
        recorder.dispatch(&KERNEL, &variant(), &params, &[x.into(), y.into()], len.div_ceil(WORKGROUP));
    }
}

fn variant() -> Variant {
    Variant::new().constant_is("WORKGROUP", WORKGROUP as u32)
}

fn cases(_: &Caps, set: CaseSet) -> Vec<Case> {
    let shapes: &[(usize, usize)] = match set {
        // The last shape wraps into the second dimension of workgroups.
        CaseSet::Test => &[(1, 1), (1, 576), (1, 3 * 577), (3, 577), (40, 96), (5, 1), (1, 65_535 * WORKGROUP + 1000)],
        CaseSet::Bench => &[(1, 3072), (512, 3072), (1, 512 * 3072)],
    };
    let case = |&(rows, cols): &(usize, usize)| Case {
        label: format!("{rows} x {cols}"),
        variant: variant(),
        flops: product(&[rows, cols]),
        bytes: 4 * (2 * rows * cols + cols) as u64,
        tolerance: 1e-12,
        buffers: Box::new(move || {
            let mut random = Random::new((rows * cols) as u64);
            vec![CaseBuffer::in_out(&random.values(rows * cols)), CaseBuffer::input(&random.values(cols))]
        }),
        record: Box::new(move |recorder, b| Add { rows, cols }.record(recorder, &b[0].cast(), &b[1].cast())),
        reference: Box::new(|buffers| {
            let mut x = buffers[0].values().to_vec();
            add(&mut x, buffers[1].values());
            vec![x]
        }),
    };
    shapes.iter().map(case).collect()
}
