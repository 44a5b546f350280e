//! `y[i, :] = x[rows[i], :]`: selects the rows of a prefill whose logits are needed.

mod reference;

use crate::{
    Case, CaseSet, Kernel, Variant,
    cases::Random,
    gpu::{Buffer, Caps, Recorder},
    kernel::{Access, CaseBuffer, Params, Usage, params},
};

pub use reference::select_rows;

/// `y[i, :] = x[rows[i], :]`.
pub struct SelectRows {
    /// Number of rows selected.
    pub count: usize,
    /// Columns.
    pub cols: usize,
}

params! { struct SelectRowsParams { len: u32, cols: u32 } }

const WORKGROUP: usize = 256;

/// The kernel's record.
pub static KERNEL: Kernel = Kernel {
    name: "select_rows",
    wgsl: include_str!("select_rows.wgsl"),
    bindings: &[Access::Read, Access::Read, Access::ReadWrite],
    params: SelectRowsParams::LAYOUT,
    cases,
    usage: Usage::Answer,
    ..Kernel::DEFAULTS
};

impl SelectRows {
    /// `x`: [any, cols]. `rows`: `[count]`, each a row of `x`. `y`: [count, cols].
    pub fn record(&self, recorder: &mut Recorder, x: &Buffer<f32>, rows: &Buffer<u32>, y: &Buffer<f32>) {
        let len = self.count * self.cols;
        let params = SelectRowsParams { len: len as u32, cols: self.cols as u32 };
        let buffers = [x.into(), rows.into(), y.into()];
        recorder.expect_bytes(8 * len as u64);
        recorder.dispatch(&KERNEL, &variant(), &params, &buffers, len.div_ceil(WORKGROUP));
    }
}

fn variant() -> Variant {
    Variant::new().constant_is("WORKGROUP", WORKGROUP as u32)
}

fn cases(_: &Caps, set: CaseSet) -> Vec<Case> {
    let shapes: &[(usize, usize, usize)] = match set {
        CaseSet::Test => &[(1, 1, 576), (40, 1, 2048), (9, 5, 77), (33, 33, 3072), (5, 5, 1), (70, 2, 896)],
        CaseSet::Bench => &[(512, 1, 3072)],
    };
    let case = |&(total, count, cols): &(usize, usize, usize)| Case {
        label: format!("{count} of {total} x {cols}"),
        variant: variant(),
        flops: 0,
        bytes: 8 * (count * cols) as u64,
        tolerance: 0.0,
        buffers: Box::new(move || {
            let mut random = Random::new(cols as u64);
            let x = CaseBuffer::input(&random.values(total * cols));
            let rows = (0..count).map(|i| if i == 0 { total - 1 } else { random.below(total) } as u32).collect();
            vec![x, CaseBuffer::words(rows), CaseBuffer::output(count * cols)]
        }),
        record: Box::new(move |recorder, b| {
            SelectRows { count, cols }.record(recorder, &b[0].cast(), &b[1], &b[2].cast());
        }),
        reference: Box::new(move |buffers| {
            let mut y = vec![0.0; count * cols];
            select_rows(buffers[0].values(), &buffers[1].words, cols, &mut y);
            vec![y]
        }),
    };
    shapes.iter().map(case).collect()
}
