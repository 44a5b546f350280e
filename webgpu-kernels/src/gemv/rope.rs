//! [`GemvRope`]: the product that computes a token's queries, keys and values, rotates them and stores keys and values.
//!
//! It does the work of [`super::GemvScaled`] and [`crate::rope::Rope`] in one dispatch: a team computes rows `i` and
//! `i + head_dim / 2` of a head, which are the two values of a rotation. The separate kernels are its reference. They also replace
//! it if heads have a bias or a norm, are rotated only in part, or go to a pool of eight bits.

use super::{
    GemvKind, GemvShape, candidates, default_choice,
    fused::{default_parts, random_squares},
    odd_choices, reference, shape_of, trial, tuned_choice,
};
use crate::{
    Case, CaseSet, Kernel, KvDtype, KvPool, Rows, Variant, WeightFormat,
    cases::{self, CaseRows, Random, four_bits, random_matrix},
    gpu::{Buffer, Caps, Recorder},
    kernel::{Access, CaseBuffer, Params, Purpose, params},
    kv::padded,
    matrix::Slice,
    rope::{RopeShape, rope},
    tuning::{GemvChoice, Tunable},
};

use half::f16;

/// `GemvScaled`, then `Rope`, of one row.
pub struct GemvRope {
    /// Partial sums in `squares`.
    pub parts: usize,
    /// Added to the mean square before the square root.
    pub eps: f32,
    /// Query heads.
    pub heads: usize,
}

params! {
    struct RopeParams {
        rows: u32, cols: u32, blocks: u32, parts: u32, eps: f32,
        heads: u32, kv_heads: u32, head_dim: u32, kv_row: u32,
    }
}

/// The kernel's record.
pub static KERNEL: Kernel = Kernel {
    name: "gemv_rope",
    wgsl: include_str!("gemv_rope.wgsl"),
    bindings: &[
        Access::Read,
        Access::Read,
        Access::Read,
        Access::ReadWrite,
        Access::Read,
        Access::Read,
        Access::ReadWrite,
        Access::Read,
    ],
    params: RopeParams::LAYOUT,
    cases,
    has_substitute: true,
    ..Kernel::DEFAULTS
};

/// The tunable of this kernel.
pub static TUNABLE: Tunable = Tunable {
    name: "gemv_rope",
    kernel: |_| &KERNEL,
    extents: &["rows", "cols"],
    candidates: |caps, problem| candidates(caps, &shape_of(problem, GemvKind::Rope)),
    trial: |caps, problem, choice| {
        let GemvShape { format, rows, cols, .. } = shape_of(problem, GemvKind::Rope);
        let parts = default_parts(caps, format, cols).next_multiple_of(4);
        let shape = Shape::of(rows, cols, format);
        let row = shape.row();
        let pool = row.pool_rows(shape.kv_heads) * KvDtype::F16.row_words(shape.head_dim);
        let table = (shape.position + 1) * shape.head_dim;
        let lens = [cols, parts, table, shape.heads * shape.head_dim, pool, row.buffer().words.len()];
        trial(caps, problem, GemvKind::Rope, choice, &lens)
    },
};

impl GemvRope {
    /// True if the kernel supports heads of this width, with this many rotated values, in a pool of this type.
    pub fn supports(head_dim: usize, rotary_dim: usize, dtype: KvDtype) -> bool {
        // A team has up to four neighboring pairs of one head.
        rotary_dim == head_dim && head_dim.is_multiple_of(8) && dtype != KvDtype::Q8
    }

    fn shape(w: &Slice) -> GemvShape {
        GemvShape { format: w.format, rows: w.rows, cols: w.cols, batch: 1, kind: GemvKind::Rope }
    }

    /// `w`: a whole matrix of queries, keys and values. `x`: [w.cols]. `squares`: `[parts]`, padded to a multiple of four values.
    /// `rope`: [positions, head_dim / 2, 2]. `rows`: one row. `q`: [heads * head_dim].
    #[expect(clippy::too_many_arguments, reason = "the buffers of a fused operation")]
    pub fn record(
        &self,
        recorder: &mut Recorder,
        w: &Slice,
        x: &Buffer<f32>,
        squares: &Buffer<f32>,
        rope: &Buffer<f32>,
        rows: &Rows,
        q: &Buffer<f32>,
        pool: &KvPool,
    ) {
        let choice = tuned_choice(recorder.gpu(), &GemvRope::shape(w));
        self.record_choice(recorder, choice, w, [x, squares, rope, q], rows, pool);
    }

    fn record_choice(
        &self,
        recorder: &mut Recorder,
        choice: GemvChoice,
        w: &Slice,
        [x, squares, rope, q]: [&Buffer<f32>; 4],
        rows: &Rows,
        pool: &KvPool,
    ) {
        let KvPool { kv_heads, head_dim, dtype, .. } = *pool;
        assert!(GemvRope::supports(head_dim, head_dim, dtype), "gemv_rope: head width {head_dim} is not supported");
        assert_eq!(w.rows, (self.heads + 2 * kv_heads) * head_dim, "gemv_rope: rows of all heads");
        pool.assert_has_pages(rows, "gemv_rope");
        let position = rows.position("gemv_rope");
        assert!((position + 1) * head_dim <= rope.len(), "gemv_rope: position {position} exceeds the table");
        let (caps, shape) = (*recorder.gpu().caps(), GemvRope::shape(w));
        let params = RopeParams {
            rows: w.rows as u32,
            cols: w.cols as u32,
            blocks: shape.blocks(&choice) as u32,
            parts: self.parts as u32,
            eps: self.eps,
            heads: self.heads as u32,
            kv_heads: kv_heads as u32,
            head_dim: head_dim as u32,
            kv_row: dtype.row_words(head_dim) as u32,
        };
        let buffers = [
            (&w.q_weight).into(),
            (&w.q_scale).into(),
            x.into(),
            q.into(),
            squares.into(),
            rope.into(),
            (&pool.kv).into(),
            (&rows.words).into(),
        ];
        let groups = w.rows.div_ceil(choice.workgroup_rows(&caps));
        let bytes = w.format.matrix_bytes(w.rows, w.cols) + 4 * (w.cols + w.rows + head_dim) as u64;
        recorder.expect_bytes(bytes);
        recorder.dispatch(&KERNEL, &variant(&caps, &shape, choice, self.parts, dtype), &params, &buffers, groups);
    }
}

fn variant(caps: &Caps, shape: &GemvShape, choice: GemvChoice, parts: usize, dtype: KvDtype) -> Variant {
    dtype.flag(choice.variant(caps, shape, parts))
}

/// Query heads, key heads and head width of a case with this many rows.
fn heads_of(rows: usize) -> [usize; 3] {
    let fits = |dim: &usize| rows.is_multiple_of(*dim) && rows / dim >= 3;
    let head_dim = [128, 64, 32, 16, 8].into_iter().find(fits).unwrap_or(rows / 3);
    let all = rows / head_dim;
    let kv_heads = (all / 5).max(1);
    [all - 2 * kv_heads, kv_heads, head_dim]
}

/// Shape of a case.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    format: WeightFormat,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    cols: usize,
    position: usize,
}

impl Shape {
    /// Heads with this many rows in all: three query heads per key head if possible.
    pub(super) fn of(rows: usize, cols: usize, format: WeightFormat) -> Shape {
        let [heads, kv_heads, head_dim] = heads_of(rows);
        Shape { format, heads, kv_heads, head_dim, cols, position: 5 }
    }

    /// The token.
    fn row(&self) -> CaseRows {
        CaseRows::new(&[(1, self.position)])
    }

    fn rows(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    fn shape(&self) -> GemvShape {
        GemvShape { format: self.format, rows: self.rows(), cols: self.cols, batch: 1, kind: GemvKind::Rope }
    }
}

fn cases(caps: &Caps, set: CaseSet) -> Vec<Case> {
    let q4 = four_bits();
    let shape =
        |format, heads, kv_heads, head_dim, cols, position| Shape { format, heads, kv_heads, head_dim, cols, position };
    let shapes = match set {
        CaseSet::Test => vec![
            shape(q4, 9, 3, 64, 576, 0),
            shape(q4, 3, 1, 128, 3072, 7),
            shape(q4, 2, 2, 16, 2048, 40),
            shape(WeightFormat::F16, 3, 1, 64, 576, 3),
            shape(WeightFormat::F32, 2, 1, 32, 96, 3),
            shape(WeightFormat::Group { bits: 8, group_size: 16 }, 2, 1, 8, 64, 3),
        ],
        CaseSet::Bench => vec![shape(q4, 24, 8, 128, 3072, 100)],
    };
    let default = |shape: Shape| {
        [KvDtype::F16, KvDtype::F32].map(|dtype| case(caps, shape, default_choice(caps, &shape.shape()), dtype))
    };
    let odd = if set == CaseSet::Test { odd_choices(caps, GemvKind::Rope) } else { Vec::new() };
    let odd = odd.into_iter().map(|(of, choice)| {
        let shape = Shape { format: of.format, heads: 4, kv_heads: 2, head_dim: 64, cols: of.cols, position: 9 };
        case(caps, shape, choice, KvDtype::F16)
    });
    shapes.into_iter().flat_map(default).chain(odd).collect()
}

/// Small cases of a model's heads.
pub(crate) fn case_of(caps: &Caps, format: WeightFormat, cols: usize, head_dim: usize, dtype: KvDtype) -> Case {
    let shape = Shape { format, heads: 2, kv_heads: 1, head_dim, cols, position: 3 };
    case(caps, shape, default_choice(caps, &shape.shape()), dtype)
}

pub(super) fn case(caps: &Caps, shape: Shape, choice: GemvChoice, dtype: KvDtype) -> Case {
    let Shape { format, heads, kv_heads, head_dim, cols, position } = shape;
    let (rows, row) = (shape.rows(), shape.row());
    let parts = default_parts(caps, format, cols);
    let (kv_shape, pool_rows) = ([kv_heads, head_dim], row.pool_rows(kv_heads));
    let [made, recorded, expected] = [(); 3].map(|()| row.clone());
    Case {
        label: format!("{rows} x {cols}, {heads}/{kv_heads} heads of {head_dim} at {position}"),
        variant: variant(caps, &shape.shape(), choice, parts, dtype),
        flops: 2 * (rows * cols) as u64,
        bytes: (rows * format.blocks(cols) * format.block_bytes() + 4 * (cols + rows)) as u64,
        // The pool is rounded, and devices round differently.
        tolerance: if dtype == KvDtype::F32 { choice.tolerance() } else { 1e-6 },
        buffers: Box::new(move || {
            let [q_weight, q_scale] = random_matrix(format, rows, cols, cols as u64);
            let mut random = Random::new(rows as u64);
            let (x, squares) = (CaseBuffer::input(&random.values(cols)), random_squares(&mut random, parts));
            let pool_words = vec![0; pool_rows * dtype.row_words(head_dim)];
            vec![
                q_weight,
                q_scale,
                x,
                squares,
                CaseBuffer::input(&random.values((position + 1) * head_dim)),
                CaseBuffer::output(heads * head_dim),
                CaseBuffer { words: pool_words, purpose: Purpose::Kv(dtype, head_dim) },
                made.buffer(),
            ]
        }),
        record: Box::new(move |recorder, b| {
            let w = cases::slice(format, rows, cols, &b[0], &b[1]);
            let (pool, rows) = (recorded.pool(&b[6], kv_shape, dtype), recorded.on_device(recorder, &b[7]));
            let [x, squares, rope, q] = [2, 3, 4, 5].map(|i: usize| b[i].cast());
            let kernel = GemvRope { parts, eps: 1e-5, heads };
            kernel.record_choice(recorder, choice, &w, [&x, &squares, &rope, &q], &rows, &pool);
        }),
        reference: Box::new(move |b| {
            let w = cases::values(format, rows, cols, &b[0].words, &b[1].words);
            let mut qkv = vec![0.0; rows];
            reference::gemv_scaled(&w, b[2].values(), &b[3].values()[..parts], 1e-5, &mut qkv);
            let (mut q, mut kv) = (vec![0.0; heads * head_dim], vec![0.0; pool_rows * padded(head_dim)]);
            let shape = RopeShape { heads, kv_heads, head_dim, rotary_dim: head_dim };
            rope(shape, &expected.spans(), &qkv, b[4].values(), &mut q, &mut kv);
            if dtype == KvDtype::F16 {
                let largest = f16::MAX.to_f32();
                kv.iter_mut().for_each(|value| *value = value.clamp(-largest, largest));
            }
            vec![q, kv]
        }),
    }
}
