//! Causal attention of the rows of a batch over the pages of their sequences, which hold the keys and values of these rows already:
//!
//! `y[r, h] = sum over p of softmax_p(scale * q[r, h] . k[h', p]) * v[h', p]`, `p <= position of r`, where `h'` is the key head that
//! serves `h`. Scores may be capped. Rows may see only a window of the keys.
//!
//! Kernels:
//! - `attention_tile` for many rows of one sequence: tile.rs.
//! - `attention_teams` for few rows of each of any number of sequences, one row at a time, if subgroups are large enough: decode.rs.
//! - `attention_decode` for few rows elsewhere.
//! - `attention_reduce`, the reduction of split-K: for long contexts several workgroups share the keys of a row.

mod cases;
mod decode;
mod reference;
mod shape;
mod teams;
mod tile;

use crate::{
    Kernel, KvDtype, KvPool, Rows,
    gpu::{Buffer, Recorder},
    kernel::{Access, Params, Usage, params},
    kv::DeviceSpan,
    tuning::{AttentionTileChoice, Trial, Tunable},
};

pub use crate::tuning::Teams;
pub(crate) use cases::cases_of;
pub use cases::choice_cases;
use cases::{Sizes, choice_case, decode_cases, plain_shape, reduce_cases, teams_cases, tile_case, tile_cases};
pub use reference::{attention, join_splits};
pub use shape::AttentionShape;
pub use teams::DecodeChoice;
use teams::FewRows;
pub(crate) use teams::UNSPLIT_KEYS;
use tile::{Tiles, default_slots, tile_choices};

/// More rows of a sequence than this go to the tile kernel.
const DECODE_ROWS: usize = 4;

/// Causal attention of the rows of a batch.
pub struct Attention {
    /// Heads, scale and mask.
    pub shape: AttentionShape,
}

/// The buffers of attention.
#[derive(Clone, Copy)]
struct Buffers<'a> {
    q: &'a Buffer<f32>,
    pool: &'a KvPool,
    rows: &'a Rows,
    y: &'a Buffer<f32>,
}

params! {
    struct TileParams {
        rows: u32, first_row: u32, kv_heads: u32, past_len: u32, pages: u32, groups: u32, window: u32,
        scale: f32, soft_cap: f32,
    }
}

params! {
    struct DecodeParams {
        rows: u32, first_row: u32, heads: u32, kv_heads: u32, splits: u32, groups: u32, window: u32, scale: f32, soft_cap: f32,
    }
}

params! { struct ReduceParams { first_row: u32, heads: u32, splits: u32, groups: u32 } }

/// The record of the kernel for many rows.
pub static TILE_KERNEL: Kernel = Kernel {
    name: "attention_tile",
    wgsl: include_str!("tile.wgsl"),
    bindings: &[Access::Read, Access::Read, Access::Read, Access::ReadWrite],
    params: TileParams::LAYOUT,
    cases: tile_cases,
    ..Kernel::DEFAULTS
};

/// The record of the kernel for few rows.
pub static DECODE_KERNEL: Kernel = Kernel {
    name: "attention_decode",
    wgsl: include_str!("decode.wgsl"),
    bindings: &[Access::Read, Access::Read, Access::Read, Access::ReadWrite],
    params: DecodeParams::LAYOUT,
    cases: decode_cases,
    usage: Usage::Answer,
    ..Kernel::DEFAULTS
};

/// The record of the kernel for few rows on devices with large subgroups.
pub static TEAMS_KERNEL: Kernel = Kernel {
    name: "attention_teams",
    wgsl: include_str!("teams.wgsl"),
    bindings: &[Access::Read, Access::Read, Access::Read, Access::ReadWrite],
    params: DecodeParams::LAYOUT,
    cases: teams_cases,
    usage: Usage::Answer,
    has_substitute: true,
    ..Kernel::DEFAULTS
};

/// The record of the reduction of split-K.
pub static REDUCE_KERNEL: Kernel = Kernel {
    name: "attention_reduce",
    wgsl: include_str!("reduce.wgsl"),
    bindings: &[Access::Read, Access::ReadWrite],
    params: ReduceParams::LAYOUT,
    cases: reduce_cases,
    usage: Usage::Answer,
    ..Kernel::DEFAULTS
};

/// The choice of an [`AttentionDecodeChoice`](crate::tuning::AttentionDecodeChoice), for few rows.
pub static DECODE_TUNABLE: Tunable = Tunable {
    name: "attention_decode",
    kernel: |_| &DECODE_KERNEL,
    extents: &["heads", "kv_heads", "head_dim"],
    candidates: |caps, problem| {
        let [heads, kv_heads, head_dim, ..] = problem.sizes();
        teams::candidates(caps, heads / kv_heads, head_dim)
    },
    trial: |caps, problem, choice| {
        let [heads, kv_heads, head_dim, ..] = problem.sizes();
        let case = |sizes: Sizes| {
            let choice = sizes.few_rows().decode_choice(choice.get());
            choice_case(caps, sizes, choice, KvDtype::F16)
        };
        // A conversation of medium length.
        let sizes = Sizes::new(1, 1535, heads, kv_heads, head_dim);
        Trial {
            lens: sizes.lens(KvDtype::F16),
            rotated: vec![1],
            case: case(sizes),
            checks: vec![case(Sizes::new(1, 500, heads / kv_heads, 1, head_dim))],
        }
    },
};

/// The choice of the tile kernel's slots, by a class of row counts. It does not change the order of any sum.
pub static TILE_TUNABLE: Tunable = Tunable {
    name: "attention_tile",
    kernel: |_| &TILE_KERNEL,
    extents: &["heads", "kv_heads", "head_dim", "rows"],
    candidates: |caps, problem| {
        let [heads, kv_heads, head_dim, rows, _] = problem.sizes();
        let own = default_slots(caps, &plain_shape(heads, kv_heads, head_dim), rows);
        let others = tile_choices(caps, head_dim).filter(|slots| *slots != own);
        std::iter::once(own).chain(others).map(|slots| AttentionTileChoice { slots: slots as u32 }.into()).collect()
    },
    trial: |_, problem, choice| {
        let [heads, kv_heads, head_dim, rows, _] = problem.sizes();
        let slots = choice.get::<AttentionTileChoice>().slots as usize;
        let sizes = Sizes::new(rows, 0, heads, kv_heads, head_dim);
        Trial {
            lens: sizes.lens(KvDtype::F16),
            case: tile_case(sizes, slots, KvDtype::F16),
            rotated: vec![1],
            checks: vec![tile_case(Sizes::new(9, 40, heads / kv_heads, 1, head_dim), slots, KvDtype::F16)],
        }
    },
};

impl Attention {
    /// `q`, `y`: `[rows, heads * head_dim]`. On a slow device it records several dispatches, which give the same bits as one.
    pub fn record(&self, recorder: &mut Recorder, q: &Buffer<f32>, pool: &KvPool, rows: &Rows, y: &Buffer<f32>) {
        let AttentionShape { heads, kv_heads, head_dim, .. } = self.shape;
        assert_eq!((pool.kv_heads, pool.head_dim), (kv_heads, head_dim), "attention: shape of the pool");
        assert!(heads.is_multiple_of(kv_heads), "attention: {heads} heads over {kv_heads}");
        pool.assert_has_pages(rows, "attention");
        let buffers = Buffers { q, pool, rows, y };
        let is_few = |span: &DeviceSpan| span.rows <= DECODE_ROWS;
        for spans in rows.spans().chunk_by(|one, other| is_few(one) && is_few(other)) {
            match spans {
                [span] if !is_few(span) => Tiles { shape: self.shape, span: *span }.record(recorder, buffers),
                few => {
                    let choice = FewRows::of(self.shape, few).choice(recorder.gpu());
                    FewRows::record(self.shape, few, recorder, buffers, choice);
                }
            }
        }
    }
}
