//! Rotary position embedding of queries and keys, and the store of keys and values in a pool, in one kernel.
//!
//! For each row at position p, each head of q and k, and each pair i < half, half = rotary_dim / 2, with (c, s) the
//! cosine and sine of the pair's angle at p:
//! `out[i] = in[i] * c - in[i + half] * s`, `out[i + half] = in[i + half] * c + in[i] * s`.
//! Values beyond rotary_dim are copied unchanged.

mod reference;

use crate::{
    Case, CaseSet, Kernel, KvDtype, KvPool, Rows, Variant,
    cases::{CaseRows, Random, with_outliers},
    gpu::{Buffer, Caps, Recorder},
    kernel::{Access, CaseBuffer, Params, Purpose, params, product},
    kv::{GROUP, padded},
};

use half::f16;

pub use reference::{Shape as RopeShape, rope};

/// Rotates the queries and keys of a batch's rows and appends keys and values to the pages of their sequences.
pub struct Rope {
    /// Query heads.
    pub heads: usize,
    /// Rotated values of each head, from its first on.
    pub rotary_dim: usize,
}

params! {
    struct RopeParams {
        lanes: u32, heads: u32, kv_heads: u32, head_dim: u32, rotary_dim: u32, head_quads: u32, kv_row: u32,
    }
}

const WORKGROUP: usize = 64;

/// The kernel's record.
pub static KERNEL: Kernel = Kernel {
    name: "rope",
    wgsl: include_str!("rope.wgsl"),
    bindings: &[Access::Read, Access::Read, Access::ReadWrite, Access::ReadWrite, Access::Read],
    params: RopeParams::LAYOUT,
    cases,
    ..Kernel::DEFAULTS
};

impl Rope {
    /// `qkv`: [rows, (heads + 2 * kv_heads) * head_dim]. `rope`: [positions, rotary_dim / 2, 2].
    /// `q`: [rows, heads * head_dim].
    pub fn record(
        &self,
        recorder: &mut Recorder,
        qkv: &Buffer<f32>,
        rope: &Buffer<f32>,
        q: &Buffer<f32>,
        pool: &KvPool,
        rows: &Rows,
    ) {
        let KvPool { kv_heads, head_dim, dtype, .. } = *pool;
        let whole = head_dim.is_multiple_of(4) && self.rotary_dim.is_multiple_of(4);
        assert!(whole, "rope: {} of {head_dim} elements, both must be multiples of 4", self.rotary_dim);
        pool.assert_has_pages(rows, "rope");
        let end = rows.end();
        assert!(end * self.rotary_dim <= rope.len(), "rope: position {end} is beyond the table");
        // Lanes that share a scale belong to one head.
        let quads = if dtype == KvDtype::Q8 { head_dim.next_multiple_of(GROUP) / 4 } else { head_dim / 4 };
        let lanes = rows.count() * (self.heads + 2 * kv_heads) * quads;
        let params = RopeParams {
            lanes: lanes as u32,
            heads: self.heads as u32,
            kv_heads: kv_heads as u32,
            head_dim: head_dim as u32,
            rotary_dim: self.rotary_dim as u32,
            head_quads: quads as u32,
            kv_row: dtype.row_words(head_dim) as u32,
        };
        let buffers = [qkv.into(), rope.into(), q.into(), (&pool.kv).into(), (&rows.words).into()];
        // Each lane reads and writes 16 bytes.
        recorder.expect_bytes(2 * 16 * lanes as u64);
        recorder.dispatch(&KERNEL, &variant(dtype), &params, &buffers, lanes.div_ceil(WORKGROUP));
    }
}

fn variant(dtype: KvDtype) -> Variant {
    dtype.flag(Variant::new().constant_is("WORKGROUP", WORKGROUP as u32))
}

/// Shape of a case.
#[derive(Clone)]
struct Shape {
    /// Number of rows of each sequence, and position of the first one.
    spans: Vec<(usize, usize)>,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    rotary_dim: usize,
}

fn cases(_: &Caps, set: CaseSet) -> Vec<Case> {
    let batch = |spans: &[(usize, usize)], [heads, kv_heads, head_dim, rotary_dim]: [usize; 4]| Shape {
        spans: spans.to_vec(),
        heads,
        kv_heads,
        head_dim,
        rotary_dim,
    };
    let part = |rows, past_len, heads, kv_heads, head_dim, rotary_dim| {
        batch(&[(rows, past_len)], [heads, kv_heads, head_dim, rotary_dim])
    };
    let shape = |rows, past_len, heads, kv_heads, head_dim| part(rows, past_len, heads, kv_heads, head_dim, head_dim);
    let shapes = match set {
        CaseSet::Test => vec![
            shape(1, 0, 9, 3, 64),
            shape(7, 5, 24, 8, 128),
            shape(3, 30, 4, 1, 16),
            shape(2, 1, 3, 3, 20),
            shape(40, 0, 2, 2, 64),
            shape(3, 2, 8, 4, 256),
            part(5, 9, 4, 2, 128, 96),
            part(2, 0, 3, 1, 20, 8),
            part(1, 7, 2, 2, 64, 4),
            shape(1, 8191, 4, 2, 64),
            shape(65, 3, 8, 8, 80),
            shape(2, 0, 32, 32, 96),
            shape(1, 1, 14, 2, 64),
            shape(4, 4000, 8, 1, 128),
            part(33, 0, 24, 8, 128, 96),
            shape(6, 9, 1, 1, 512),
            batch(&[(1, 0), (1, 699), (9, 20), (3, 60), (1, 31), (40, 90), (1, 300)], [9, 3, 64, 64]),
            batch(&[(2, 31), (1, 32), (5, 63)], [2, 2, 20, 8]),
        ],
        CaseSet::Bench => vec![shape(1, 1000, 24, 8, 128), shape(512, 0, 24, 8, 128)],
    };
    shapes.into_iter().flat_map(|shape| KvDtype::ALL.map(|dtype| case(shape.clone(), dtype))).collect()
}

fn case(shape: Shape, dtype: KvDtype) -> Case {
    let Shape { spans, heads, kv_heads, head_dim, rotary_dim } = shape;
    let case_rows = CaseRows::new(&spans);
    let (rows, positions) =
        (case_rows.count(), spans.iter().map(|(rows, past_len)| rows + past_len).max().unwrap_or(0));
    let width = (heads + 2 * kv_heads) * head_dim;
    let (kv_shape, pool_rows) = ([kv_heads, head_dim], case_rows.pool_rows(kv_heads));
    let [made, recorded, expected] = [(); 3].map(|()| case_rows.clone());
    Case {
        label: format!("{}, {heads}/{kv_heads} heads of {head_dim}, {rotary_dim} turned", case_rows.label()),
        variant: variant(dtype),
        flops: product(&[3, rows, heads + kv_heads, head_dim]),
        bytes: (rows * (4 * width + 4 * heads * head_dim + 8 * kv_heads * dtype.row_words(head_dim))) as u64,
        // The pool is rounded, and devices round differently.
        tolerance: if dtype == KvDtype::F32 { 1e-12 } else { 1e-6 },
        buffers: Box::new(move || {
            let mut random = Random::new(width as u64);
            vec![
                CaseBuffer::input(&if rows.is_multiple_of(2) {
                    with_outliers(random.values(rows * width))
                } else {
                    random.values(rows * width)
                }),
                CaseBuffer::input(&random.values(positions * rotary_dim)),
                CaseBuffer::output(rows * heads * head_dim),
                CaseBuffer {
                    words: vec![0; pool_rows * dtype.row_words(head_dim)],
                    purpose: Purpose::Kv(dtype, head_dim),
                },
                made.buffer(),
            ]
        }),
        record: Box::new(move |recorder, b| {
            let (pool, rows) = (recorded.pool(&b[3], kv_shape, dtype), recorded.on_device(recorder, &b[4]));
            Rope { heads, rotary_dim }.record(recorder, &b[0].cast(), &b[1].cast(), &b[2].cast(), &pool, &rows);
        }),
        reference: Box::new(move |b| {
            let (mut q, mut kv) = (vec![0.0; rows * heads * head_dim], vec![0.0; pool_rows * padded(head_dim)]);
            let shape = RopeShape { heads, kv_heads, head_dim, rotary_dim };
            rope(shape, &expected.spans(), b[0].values(), b[1].values(), &mut q, &mut kv);
            match dtype {
                KvDtype::F32 => {}
                KvDtype::F16 => {
                    let largest = f16::MAX.to_f32();
                    kv.iter_mut().for_each(|value| *value = value.clamp(-largest, largest));
                }
                KvDtype::Q8 => {
                    let rows = kv.chunks_exact_mut(padded(head_dim));
                    rows.flat_map(|row| row.chunks_mut(GROUP)).for_each(reference::round_to_eight_bits);
                }
            }
            vec![q, kv]
        }),
    }
}
