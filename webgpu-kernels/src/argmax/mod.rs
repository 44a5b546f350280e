//! `y[r] = argmax_c x[r, c]`, the lowest such `c`: greedy sampling. Only the id travels to the host.

mod reference;

use crate::{
    Case, CaseSet, Kernel, Variant,
    cases::Random,
    gpu::{Buffer, Caps, Recorder},
    kernel::{Access, CaseBuffer, Params, Purpose, params},
};

pub use reference::argmax;

/// `y[r] = argmax_c x[r, c]`. NaN is never the largest; a row of nothing else gives 0.
pub struct Argmax {
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
}

params! { struct ArgmaxParams { rows: u32, cols: u32 } }

const WORKGROUP: u32 = 256;

/// The kernel's record.
pub static KERNEL: Kernel = Kernel {
    name: "argmax",
    wgsl: include_str!("argmax.wgsl"),
    bindings: &[Access::Read, Access::ReadWrite],
    params: ArgmaxParams::LAYOUT,
    cases,
};

impl Argmax {
    /// `x`: [rows, cols]. `y`: `[rows]`.
    pub fn record(&self, recorder: &mut Recorder, x: &Buffer<f32>, y: &Buffer<u32>) {
        let params = ArgmaxParams { rows: self.rows as u32, cols: self.cols as u32 };
        recorder.dispatch(&KERNEL, &variant(), &params, &[x.into(), y.into()], self.rows);
    }
}

fn variant() -> Variant {
    Variant::new().constant_is("WORKGROUP", WORKGROUP)
}

fn cases(_: &Caps, set: CaseSet) -> Vec<Case> {
    let shapes: &[(usize, usize)] = match set {
        CaseSet::Test => &[(1, 49_152), (3, 1000), (2, 77), (1, 1)],
        CaseSet::Bench => &[(1, 128_256)],
    };
    let case = |&(rows, cols): &(usize, usize)| Case {
        label: format!("{rows} x {cols}"),
        variant: variant(),
        flops: (rows * cols) as u64,
        bytes: (4 * rows * cols) as u64,
        tolerance: 0.0,
        buffers: Box::new(move || {
            let mut x = Random::new(cols as u64).values(rows * cols);
            // Ties, negative values alone, and NaN.
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
