//! Causal attention over a KV cache that holds the keys and values of the rows already:
//!
//! `y[r, h] = sum over p of softmax_p(scale * q[r, h] . k[h', p]) * v[h', p]`, `p <= past_len + r`, where `h'` is the key head that
//! serves `h`. Scores may be capped. Rows may see only a window of the keys; keys before the window of the first row are skipped.
//!
//! Kernels:
//! - `attention_tile` for many rows.
//! - `attention_teams` for few rows, one row at a time, if subgroups are large enough.
//! - `attention_decode` for few rows elsewhere.
//! - `attention_reduce`, the reduction of split-K: for long contexts several workgroups share the keys of a row.

mod cases;
mod reference;
mod shape;
mod teams;

pub use crate::tuning::Teams;
use crate::{
    Kernel, KvCache, KvDtype, Variant,
    gpu::{Buffer, Caps, Gpu, Recorder},
    kernel::{Access, Params, Usage, params, product},
    kv::padded,
    tuning::{AttentionDecodeChoice, AttentionTileChoice, Problem, Trial, Tunable},
};
pub(crate) use cases::cases_of;
pub use cases::choice_cases;
use cases::{Sizes, choice_case, decode_cases, reduce_cases, teams_cases, tile_case, tile_cases};
pub use reference::{attention, join_splits};
pub use shape::AttentionShape;
pub(crate) use teams::UNSPLIT_KEYS;
pub use teams::{DecodeChoice, choices};

/// Causal attention of some rows of one sequence.
pub struct Attention {
    /// Heads, scale and mask.
    pub shape: AttentionShape,
    /// First of the rows of `q` and `y`.
    pub first_row: usize,
    /// Number of rows, one per token of the sequence.
    pub rows: usize,
    /// Position of the first row. The cache holds `past_len + rows` tokens.
    pub past_len: usize,
}

params! {
    struct TileParams {
        rows: u32, first_row: u32, kv_heads: u32, past_len: u32, capacity: u32, groups: u32, window: u32,
        scale: f32, soft_cap: f32,
    }
}

params! {
    struct DecodeParams {
        rows: u32, first_row: u32, heads: u32, past_len: u32, capacity: u32, splits: u32, split_keys: u32, groups: u32,
        window: u32, begin: u32, scale: f32, soft_cap: f32,
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

/// The choice of an [`AttentionDecodeChoice`], for few rows.
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
            let choice = sizes.attention().decode_choice(choice.get());
            choice_case(caps, sizes, choice, KvDtype::F16)
        };
        // A conversation of medium length.
        let sizes = Sizes::new(1, 1535, heads, kv_heads, head_dim);
        Trial {
            case: case(sizes),
            lens: sizes.lens(KvDtype::F16),
            rotated: vec![1, 2],
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
        let own = Sizes::new(rows, 0, heads, kv_heads, head_dim).attention().default_slots(caps);
        let others = tile_choices(caps, head_dim).filter(|slots| *slots != own);
        std::iter::once(own).chain(others).map(|slots| AttentionTileChoice { slots: slots as u32 }.into()).collect()
    },
    trial: |_, problem, choice| {
        let [heads, kv_heads, head_dim, rows, _] = problem.sizes();
        let slots = choice.get::<AttentionTileChoice>().slots as usize;
        let sizes = Sizes::new(rows, 0, heads, kv_heads, head_dim);
        Trial {
            case: tile_case(sizes, slots, KvDtype::F16),
            lens: sizes.lens(KvDtype::F16),
            rotated: vec![1, 2],
            checks: vec![tile_case(Sizes::new(9, 40, heads / kv_heads, 1, head_dim), slots, KvDtype::F16)],
        }
    },
};

/// Classes of row counts for the choice of slots: each has the rows up to it, the last one also more.
const TILE_CLASSES: [usize; 4] = [16, 64, 128, 512];

/// Slots (a row and a head) of a lane of the tile kernel, the preferred number first. Registers bound them.
const TILE_SLOTS: [usize; 3] = [8, 4, 2];
/// Lanes of a workgroup with slots of their own.
const SLOT_LANES: usize = 8;
/// Widest head with eight slots per lane.
const MANY_SLOTS_DIM: usize = 128;
/// Lanes, and keys per tile, of the decode kernel.
const DECODE_KEYS: usize = 128;
/// Eights of a key, and values, that a lane of the decode kernel loads at a time.
const DECODE_LOADS: usize = 8;
/// Most splits.
const MAX_SPLITS: usize = 64;
/// Splits that a lane of the reduce kernel loads at a time.
const REDUCE_LOADS: usize = 8;
/// Workgroups of the decode kernel that keep a large device busy.
const ENOUGH_GROUPS: usize = 256;
/// Workgroups of the tile kernel that keep a large device busy.
const ENOUGH_TILES: usize = 64;
/// More rows than this go to the tile kernel.
const DECODE_ROWS: usize = 4;

impl Attention {
    /// `q`, `y`: [any, heads * head_dim]. On a slow device it records several dispatches, which give the same bits as one.
    pub fn record(&self, recorder: &mut Recorder, q: &Buffer<f32>, cache: &KvCache, y: &Buffer<f32>) {
        let AttentionShape { heads, kv_heads, head_dim, .. } = self.shape;
        let end = self.past_len + self.rows;
        assert!(end <= cache.capacity, "attention: {end} tokens in a cache for {}", cache.capacity);
        assert_eq!((cache.kv_heads, cache.head_dim), (kv_heads, head_dim), "attention: shape of the cache");
        assert!(heads.is_multiple_of(kv_heads), "attention: {heads} heads over {kv_heads}");
        let work = [4, self.most_keys(), heads, head_dim];
        for range in recorder.row_ranges(self.rows, product(&work), 1) {
            let (first_row, past_len) = (self.first_row + range.start, self.past_len + range.start);
            let part = Attention { first_row, past_len, rows: range.len(), ..*self };
            part.record_rows(recorder, q, cache, y);
        }
    }

    fn record_rows(&self, recorder: &mut Recorder, q: &Buffer<f32>, cache: &KvCache, y: &Buffer<f32>) {
        recorder.expect_work(&[4, self.rows, self.most_keys(), self.shape.heads, self.shape.head_dim]);
        if self.rows > DECODE_ROWS {
            let slots = self.tile_slots(recorder.gpu());
            self.record_tile(recorder, q, cache, y, slots);
        } else {
            let choice = self.choice(recorder.gpu());
            self.record_decode(recorder, q, cache, y, choice);
        }
    }

    fn record_tile(&self, recorder: &mut Recorder, q: &Buffer<f32>, cache: &KvCache, y: &Buffer<f32>, slots: usize) {
        let groups = self.tile_groups(slots);
        let params = TileParams {
            rows: self.rows as u32,
            first_row: self.first_row as u32,
            kv_heads: cache.kv_heads as u32,
            past_len: self.past_len as u32,
            capacity: cache.capacity as u32,
            groups: groups as u32,
            window: self.window(),
            scale: self.shape.scale,
            soft_cap: self.shape.soft_cap.unwrap_or_default(),
        };
        let variant = self.tile_variant(cache.dtype, slots);
        let buffers = [q.into(), (&cache.k).into(), (&cache.v).into(), y.into()];
        recorder.expect_bytes(cache.bytes_of(self.keys()));
        recorder.dispatch(&TILE_KERNEL, &variant, &params, &buffers, groups);
    }

    /// Workgroups of the tile kernel.
    fn tile_groups(&self, slots: usize) -> usize {
        (self.rows * self.shape.group()).div_ceil(SLOT_LANES * slots) * self.shape.kv_heads
    }

    /// The chosen slots of a lane.
    fn tile_slots(&self, gpu: &Gpu) -> usize {
        let AttentionShape { heads, kv_heads, head_dim, .. } = self.shape;
        let [.., last] = TILE_CLASSES;
        let class = TILE_CLASSES.into_iter().find(|most| self.rows <= *most).unwrap_or(last);
        let problem = Problem::new(&TILE_TUNABLE, None, [heads, kv_heads, head_dim, class]);
        gpu.choice(problem).get::<AttentionTileChoice>().slots as usize
    }

    /// Slots without autotuning: fewer if there would be too few workgroups for a large device.
    fn default_slots(&self, caps: &Caps) -> usize {
        let enough = |slots: &usize| self.tile_groups(*slots) >= ENOUGH_TILES;
        let mut choices = tile_choices(caps, self.shape.head_dim);
        let least = choices.clone().next_back().expect("the fewest slots fit everywhere");
        choices.find(enough).unwrap_or(least)
    }

    /// The window, or one without end.
    fn window(&self) -> u32 {
        self.shape.window.map_or(u32::MAX, |window| window as u32)
    }

    /// The first key that any row sees.
    fn begin(&self) -> usize {
        self.shape.window.map_or(0, |window| (self.past_len + 1).saturating_sub(window))
    }

    /// Keys that the rows see, counted together.
    fn keys(&self) -> usize {
        self.past_len + self.rows - self.begin()
    }

    /// Most keys that one row sees.
    fn most_keys(&self) -> usize {
        self.shape.window.unwrap_or(usize::MAX).min(self.past_len + self.rows)
    }

    /// The choice for few rows.
    fn choice(&self, gpu: &Gpu) -> DecodeChoice {
        let AttentionShape { heads, kv_heads, head_dim, .. } = self.shape;
        let problem = Problem::new(&DECODE_TUNABLE, None, [heads, kv_heads, head_dim]);
        let mut chosen: AttentionDecodeChoice = gpu.choice(problem).get();
        if gpu.is_off(TEAMS_KERNEL.name) {
            chosen.teams = None;
        }
        self.decode_choice(chosen)
    }

    fn record_decode(
        &self,
        recorder: &mut Recorder,
        q: &Buffer<f32>,
        cache: &KvCache,
        y: &Buffer<f32>,
        choice: DecodeChoice,
    ) {
        let split_keys = self.split_keys(choice);
        // Keys of a split are rounded up, so there may be fewer splits.
        let splits = self.keys().div_ceil(split_keys);
        let choice = DecodeChoice { splits, ..choice };
        if splits == 1 {
            self.record_split(recorder, q, cache, y, choice, split_keys);
            return;
        }
        let parts = recorder.temporary(self.rows * self.shape.heads * splits * (cache.head_dim + 2));
        self.record_split(recorder, q, cache, &parts, choice, split_keys);
        let reduce = Reduce { first_row: self.first_row, rows: self.rows, heads: self.shape.heads, splits };
        reduce.record(recorder, cache.head_dim, &parts, y);
    }

    fn record_split(
        &self,
        recorder: &mut Recorder,
        q: &Buffer<f32>,
        cache: &KvCache,
        y: &Buffer<f32>,
        choice: DecodeChoice,
        split_keys: usize,
    ) {
        let AttentionShape { heads, head_dim, .. } = self.shape;
        let of_workgroup = match choice.teams {
            Some(teams) => teams.heads as usize,
            None => workgroup_heads(self.shape.group(), head_dim),
        };
        let groups = self.rows * heads / of_workgroup * choice.splits;
        let params = DecodeParams {
            rows: self.rows as u32,
            first_row: self.first_row as u32,
            heads: heads as u32,
            past_len: self.past_len as u32,
            capacity: cache.capacity as u32,
            splits: choice.splits as u32,
            split_keys: split_keys as u32,
            groups: groups as u32,
            window: self.window(),
            begin: self.begin() as u32,
            scale: self.shape.scale,
            soft_cap: self.shape.soft_cap.unwrap_or_default(),
        };
        let variant = self.decode_variant(recorder.gpu().caps(), cache.dtype, choice);
        let kernel = if choice.teams.is_some() { &TEAMS_KERNEL } else { &DECODE_KERNEL };
        let buffers = [q.into(), (&cache.k).into(), (&cache.v).into(), y.into()];
        recorder.expect_bytes(cache.bytes_of(self.keys()));
        recorder.dispatch(kernel, &variant, &params, &buffers, groups);
    }

    fn tile_variant(&self, dtype: KvDtype, slots: usize) -> Variant {
        self.variant(dtype)
            .flag_if("WINDOW", self.shape.window.is_some())
            .constant_is("CHUNKS", self.shape.head_dim.div_ceil(64) as u32)
            .constant_is("SET", slots.min(4) as u32)
            .constant_is("SETS", slots.div_ceil(4) as u32)
    }

    fn decode_variant(&self, caps: &Caps, dtype: KvDtype, choice: DecodeChoice) -> Variant {
        let (variant, head_dim) = (self.variant(dtype), self.shape.head_dim);
        if let Some(teams) = choice.teams {
            return teams.variant(variant.flag_if("SPLIT_K", choice.splits > 1), caps, head_dim);
        }
        let eights = padded(head_dim) / 8;
        // Loads of a software device do not overlap, and its compiler is slow on long functions.
        let most = if caps.is_software { 1 } else { DECODE_LOADS };
        let key_eights = (1..=most).rev().find(|&few| eights.is_multiple_of(few)).unwrap_or(1);
        variant
            .constant_is("WORKGROUP", DECODE_KEYS as u32)
            .constant_is("HEADS", workgroup_heads(self.shape.group(), head_dim) as u32)
            .constant_is("KEY_EIGHTS", key_eights as u32)
            .constant_is("VALUES", most as u32)
    }

    /// Flags and constants that the kernels share.
    fn variant(&self, dtype: KvDtype) -> Variant {
        let AttentionShape { head_dim, soft_cap, .. } = self.shape;
        let variant = dtype.flag(Variant::new()).flag_if("SOFT_CAP", soft_cap.is_some());
        variant
            .constant_is("HEAD_DIM", head_dim as u32)
            .constant_is("EIGHTS", padded(head_dim) as u32 / 8)
            .constant_is("GROUP", self.shape.group() as u32)
    }
}

/// The reduction of split-K.
struct Reduce {
    first_row: usize,
    rows: usize,
    heads: usize,
    splits: usize,
}

impl Reduce {
    fn record(&self, recorder: &mut Recorder, head_dim: usize, parts: &Buffer<f32>, y: &Buffer<f32>) {
        let groups = self.rows * self.heads;
        let params = ReduceParams {
            first_row: self.first_row as u32,
            heads: self.heads as u32,
            splits: self.splits as u32,
            groups: groups as u32,
        };
        recorder.expect_bytes(4 * (groups * (self.splits * (head_dim + 2) + head_dim)) as u64);
        recorder.dispatch(&REDUCE_KERNEL, &reduce_variant(head_dim), &params, &[parts.into(), y.into()], groups);
    }
}

fn reduce_variant(head_dim: usize) -> Variant {
    let lanes = head_dim.next_power_of_two().clamp(32, 256);
    Variant::new()
        .constant_is("WORKGROUP", lanes as u32)
        .constant_is("HEAD_DIM", head_dim as u32)
        .constant_is("STEPS", REDUCE_LOADS as u32)
}

/// Heads of a workgroup of the decode kernel: as many heads that share a key head as fit into workgroup memory.
fn workgroup_heads(group: usize, head_dim: usize) -> usize {
    let fits = |heads: &usize| group.is_multiple_of(*heads) && heads * padded(head_dim) <= 1024;
    (1..=8).rev().find(fits).unwrap_or(1)
}

/// Possible slots of a lane of the tile kernel. Two are only for devices with a known number of registers.
fn tile_choices(caps: &Caps, head_dim: usize) -> impl DoubleEndedIterator<Item = usize> + Clone {
    let registers = caps.registers;
    TILE_SLOTS.into_iter().filter(move |&slots| {
        let fits = registers.is_none_or(|registers| tile_registers(slots, head_dim) <= registers || slots == 2);
        let is_wanted = slots > 2 || registers.is_some();
        fits && is_wanted && (slots <= 4 || head_dim <= MANY_SLOTS_DIM)
    })
}

/// Estimated registers of a lane of the tile kernel: sums, scores and limits of each slot, and one load. The factor is for addresses and
/// prefetched loads; it fits the output of Mesa's compilers.
fn tile_registers(slots: usize, head_dim: usize) -> u32 {
    let values = slots * (4 * head_dim.div_ceil(64) + 8) + 16;
    (values * 9 / 5) as u32
}
