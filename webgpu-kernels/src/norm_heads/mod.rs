//! `x[r, h, c] = x[r, h, c] / sqrt(mean_c(x[r, h, c]^2) + eps) * weight[c]` for each query head and each key head of
//! concatenated queries, keys and values. Some decoders norm heads before the rotation.

mod reference;

use crate::{
    Case, CaseSet, Kernel, Variant,
    cases::Random,
    gpu::{Buffer, Caps, Recorder},
    kernel::{Access, CaseBuffer, Params, params, product},
};

pub use reference::norm_heads;

/// The norm of each query head and each key head.
pub struct NormHeads {
    /// Rows, one per token.
    pub rows: usize,
    /// Query heads.
    pub heads: usize,
    /// Key heads, and as many value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Added to the mean square before its root.
    pub eps: f32,
}

params! { struct NormHeadsParams { heads: u32, kv_heads: u32, head_dim: u32, groups: u32, eps: f32 } }

const WORKGROUP: u32 = 64;

/// The kernel's record.
pub static KERNEL: Kernel = Kernel {
    name: "norm_heads",
    wgsl: include_str!("norm_heads.wgsl"),
    bindings: &[Access::ReadWrite, Access::Read, Access::Read],
    params: NormHeadsParams::LAYOUT,
    cases,
    ..Kernel::DEFAULTS
};

impl NormHeads {
    /// `qkv`: [rows, (heads + 2 * kv_heads) * head_dim]. `query`, `key`: `[head_dim]`.
    pub fn record(&self, recorder: &mut Recorder, qkv: &Buffer<f32>, query: &Buffer<f32>, key: &Buffer<f32>) {
        let groups = self.rows * (self.heads + self.kv_heads);
        let params = NormHeadsParams {
            heads: self.heads as u32,
            kv_heads: self.kv_heads as u32,
            head_dim: self.head_dim as u32,
            groups: groups as u32,
            eps: self.eps,
        };
        let variant = variant(recorder.gpu().caps());
        recorder.dispatch(&KERNEL, &variant, &params, &[qkv.into(), query.into(), key.into()], groups);
    }
}

fn variant(caps: &Caps) -> Variant {
    Variant::new().constant_is("WORKGROUP", WORKGROUP).subgroups(caps)
}

fn cases(caps: &Caps, set: CaseSet) -> Vec<Case> {
    let caps = *caps;
    let shapes: &[(usize, usize, usize, usize)] = match set {
        CaseSet::Test => &[
            (1, 16, 8, 128),
            (5, 4, 2, 32),
            (3, 3, 1, 20),
            (7, 8, 4, 256),
            (40, 2, 2, 64),
            (1, 32, 8, 64),
            (2, 1, 1, 512),
            (6, 14, 2, 80),
        ],
        CaseSet::Bench => &[(1, 16, 8, 128), (512, 16, 8, 128)],
    };
    let case = |&(rows, heads, kv_heads, head_dim): &(usize, usize, usize, usize)| Case {
        label: format!("{rows}, {heads}/{kv_heads} heads of {head_dim}"),
        variant: variant(&caps),
        flops: product(&[4, rows, heads + kv_heads, head_dim]),
        bytes: 8 * (rows * (heads + kv_heads) * head_dim) as u64,
        tolerance: 1e-10,
        buffers: Box::new(move || {
            let mut random = Random::new((heads * head_dim) as u64);
            let qkv = random.values(rows * (heads + 2 * kv_heads) * head_dim);
            let (query, key) = (random.values(head_dim), random.values(head_dim));
            vec![CaseBuffer::in_out(&qkv), CaseBuffer::input(&query), CaseBuffer::input(&key)]
        }),
        record: Box::new(move |recorder, b| {
            let norm = NormHeads { rows, heads, kv_heads, head_dim, eps: 1e-6 };
            norm.record(recorder, &b[0].cast(), &b[1].cast(), &b[2].cast());
        }),
        reference: Box::new(move |b| {
            let mut qkv = b[0].values().to_vec();
            norm_heads(&mut qkv, heads, kv_heads, b[1].values(), b[2].values(), 1e-6);
            vec![qkv]
        }),
    };
    shapes.iter().map(case).collect()
}
