//! `y[r, h] = sum over p of softmax_p(scale * q[r, h] . k[h', p]) * v[h', p]`, `p <= past_len + r`, where `h'` is the key
//! head that serves `h`: causal attention over a cache that holds the keys and values of the rows already. Scores may be
//! capped, and rows may see a window of the keys; keys before the window of the first row are not visited.
//!
//! Kernels: `attention_tile` for many rows; for few, one row at a time, `attention_teams` where subgroups are large enough
//! and `attention_decode` elsewhere; and, where the context is long, several workgroups of either of these share the keys of a
//! row, and `attention_reduce` joins what they found.

mod cases;
mod reference;
mod teams;

pub use crate::tuning::Teams;
use crate::{
    Kernel, KvCache, KvDtype, Variant,
    gpu::{Buffer, Caps, Gpu, Recorder},
    kernel::{Access, Params, params, product},
    kv::padded,
    tuning::{AttentionDecodeChoice, AttentionTileChoice, Problem, Trial, Tunable},
};
pub(crate) use cases::cases_of;
pub use cases::{HeadShape, choice_cases};
use cases::{Shape, choice_case, decode_cases, reduce_cases, teams_cases, tile_case, tile_cases};
pub use reference::{Shape as AttentionShape, attention, join_splits};
pub(crate) use teams::UNSPLIT_KEYS;
pub use teams::{DecodeChoice, DecodeShape, choices};

/// Causal attention of some rows of one sequence.
pub struct Attention {
    /// First of the rows of `q` and `y`.
    pub first_row: usize,
    /// Number of rows, one per token of the sequence.
    pub rows: usize,
    /// Query heads.
    pub heads: usize,
    /// Position of the first row; the cache holds `past_len + rows` tokens.
    pub past_len: usize,
    /// Factor on `q . k`.
    pub scale: f32,
    /// Cap `c` of the scaled scores: `c * tanh(score / c)`.
    pub soft_cap: Option<f32>,
    /// How many keys a row sees, the last ones, its own among them. `None`: all.
    pub window: Option<usize>,
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
};

/// The record of the kernel for few rows.
pub static DECODE_KERNEL: Kernel = Kernel {
    name: "attention_decode",
    wgsl: include_str!("decode.wgsl"),
    bindings: &[Access::Read, Access::Read, Access::Read, Access::ReadWrite],
    params: DecodeParams::LAYOUT,
    cases: decode_cases,
};

/// The record of the kernel for few rows where subgroups are large enough.
pub static TEAMS_KERNEL: Kernel = Kernel {
    name: "attention_teams",
    wgsl: include_str!("teams.wgsl"),
    bindings: &[Access::Read, Access::Read, Access::Read, Access::ReadWrite],
    params: DecodeParams::LAYOUT,
    cases: teams_cases,
};

/// The record of the kernel that joins what the splits found.
pub static REDUCE_KERNEL: Kernel = Kernel {
    name: "attention_reduce",
    wgsl: include_str!("reduce.wgsl"),
    bindings: &[Access::Read, Access::ReadWrite],
    params: ReduceParams::LAYOUT,
    cases: reduce_cases,
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
        let case = |shape: Shape| {
            let choice = shape.attention().decode_shape(shape.cache_shape(KvDtype::F16)).choice(choice.get());
            choice_case(caps, shape, choice, KvDtype::F16)
        };
        // A conversation of some length.
        let shape = Shape::new(1, 1535, heads, kv_heads, head_dim);
        Trial {
            case: case(shape),
            lens: shape.lens(KvDtype::F16),
            rotated: 1..3,
            checks: vec![case(Shape::new(1, 500, heads / kv_heads, 1, head_dim))],
        }
    },
};

/// The choice of the tile kernel's slots, for about so many rows. It does not change the order in which anything is added.
pub static TILE_TUNABLE: Tunable = Tunable {
    name: "attention_tile",
    kernel: |_| &TILE_KERNEL,
    extents: &["heads", "kv_heads", "head_dim", "rows"],
    candidates: |caps, problem| {
        let [heads, kv_heads, head_dim, rows, _] = problem.sizes();
        let own = Shape::new(rows, 0, heads, kv_heads, head_dim).attention().own_slots(caps, kv_heads, head_dim);
        let others = tile_choices(caps, head_dim).filter(|slots| *slots != own);
        std::iter::once(own).chain(others).map(|slots| AttentionTileChoice { slots: slots as u32 }.into()).collect()
    },
    trial: |_, problem, choice| {
        let [heads, kv_heads, head_dim, rows, _] = problem.sizes();
        let slots = choice.get::<AttentionTileChoice>().slots as usize;
        let shape = Shape::new(rows, 0, heads, kv_heads, head_dim);
        Trial {
            case: tile_case(shape, slots, KvDtype::F16),
            lens: shape.lens(KvDtype::F16),
            rotated: 1..3,
            checks: vec![tile_case(Shape::new(9, 40, heads / kv_heads, 1, head_dim), slots, KvDtype::F16)],
        }
    },
};

/// Numbers of rows that the tile kernel's slots are chosen for: each stands for those up to it, the last for more as well.
const TILE_CLASSES: [usize; 4] = [16, 64, 128, 512];

/// Slots (a row and a head) of a lane of the tile kernel: as many as registers have room for, the preferred number first.
const TILE_SLOTS: [usize; 3] = [8, 4, 2];
/// Lanes of a workgroup that have slots of their own.
const SLOT_LANES: usize = 8;
/// Widest head of which a lane has eight slots.
const MANY_SLOTS_DIM: usize = 128;
/// Lanes, and keys per tile, of the decode kernel.
const DECODE_KEYS: usize = 128;
/// Eights of a key, and values, that a lane of the decode kernel loads at a time.
const DECODE_LOADS: usize = 8;
/// The most splits.
const MAX_SPLITS: usize = 64;
/// Splits that a lane of the reduce kernel loads at a time.
const REDUCE_LOADS: usize = 8;
/// Workgroups of the decode kernel that keep a large device busy.
const ENOUGH_GROUPS: usize = 256;
/// The same of the tile kernel.
const ENOUGH_TILES: usize = 64;
/// More rows than this go to the tile kernel.
const DECODE_ROWS: usize = 4;

impl Attention {
    /// `q`, `y`: [any, heads * head_dim]. On a slow device in several dispatches, which give the same bits as one.
    pub fn record(&self, recorder: &mut Recorder, q: &Buffer<f32>, cache: &KvCache, y: &Buffer<f32>) {
        let end = self.past_len + self.rows;
        assert!(end <= cache.capacity, "attention: {end} tokens in a cache for {}", cache.capacity);
        assert!(self.heads.is_multiple_of(cache.kv_heads), "attention: {} over {}", self.heads, cache.kv_heads);
        let keys = self.window.unwrap_or(usize::MAX).min(self.past_len + self.rows);
        let work = [4, keys, self.heads, cache.head_dim];
        for range in recorder.row_ranges(self.rows, product(&work), 1) {
            let (first_row, past_len) = (self.first_row + range.start, self.past_len + range.start);
            let part = Attention { first_row, past_len, rows: range.len(), ..*self };
            part.record_rows(recorder, q, cache, y);
        }
    }

    fn record_rows(&self, recorder: &mut Recorder, q: &Buffer<f32>, cache: &KvCache, y: &Buffer<f32>) {
        let keys = self.window.unwrap_or(usize::MAX).min(self.past_len + self.rows);
        recorder.expect_work(&[4, self.rows, keys, self.heads, cache.head_dim]);
        if self.rows > DECODE_ROWS {
            let slots = self.tile_slots(recorder.gpu(), cache);
            self.record_tile(recorder, q, cache, y, slots);
        } else {
            let choice = self.choice(recorder.gpu(), cache);
            self.record_decode(recorder, q, cache, y, choice);
        }
    }

    fn record_tile(&self, recorder: &mut Recorder, q: &Buffer<f32>, cache: &KvCache, y: &Buffer<f32>, slots: usize) {
        let groups = self.tile_groups(cache.kv_heads, slots);
        let params = TileParams {
            rows: self.rows as u32,
            first_row: self.first_row as u32,
            kv_heads: cache.kv_heads as u32,
            past_len: self.past_len as u32,
            capacity: cache.capacity as u32,
            groups: groups as u32,
            window: self.window(),
            scale: self.scale,
            soft_cap: self.soft_cap.unwrap_or_default(),
        };
        let variant = self.tile_variant(CacheShape::of(cache), slots);
        let buffers = [q.into(), (&cache.k).into(), (&cache.v).into(), y.into()];
        recorder.expect_bytes(cache.bytes_of(self.past_len + self.rows - self.begin()));
        recorder.dispatch(&TILE_KERNEL, &variant, &params, &buffers, groups);
    }

    /// Workgroups of the tile kernel.
    fn tile_groups(&self, kv_heads: usize, slots: usize) -> usize {
        (self.rows * self.heads / kv_heads).div_ceil(SLOT_LANES * slots) * kv_heads
    }

    /// Slots of a lane.
    fn tile_slots(&self, gpu: &Gpu, cache: &KvCache) -> usize {
        let [.., last] = TILE_CLASSES;
        let class = TILE_CLASSES.into_iter().find(|most| self.rows <= *most).unwrap_or(last);
        let extents = [self.heads, cache.kv_heads, cache.head_dim, class];
        gpu.choice(Problem::new(&TILE_TUNABLE, None, extents)).get::<AttentionTileChoice>().slots as usize
    }

    /// Where nothing is known of the device: fewer where there would be too few workgroups for a large one.
    fn own_slots(&self, caps: &Caps, kv_heads: usize, head_dim: usize) -> usize {
        let enough = |slots: &usize| self.tile_groups(kv_heads, *slots) >= ENOUGH_TILES;
        let mut choices = tile_choices(caps, head_dim);
        let least = choices.clone().next_back().expect("the fewest slots fit everywhere");
        choices.find(enough).unwrap_or(least)
    }

    /// The window, or one that nothing is beyond.
    fn window(&self) -> u32 {
        self.window.map_or(u32::MAX, |window| window as u32)
    }

    /// The first key that any row sees.
    fn begin(&self) -> usize {
        self.window.map_or(0, |window| (self.past_len + 1).saturating_sub(window))
    }

    /// How few rows are divided among workgroups.
    fn choice(&self, gpu: &Gpu, cache: &KvCache) -> DecodeChoice {
        let problem = Problem::new(&DECODE_TUNABLE, None, [self.heads, cache.kv_heads, cache.head_dim]);
        let mut chosen: AttentionDecodeChoice = gpu.choice(problem).get();
        if gpu.is_off(TEAMS_KERNEL.name) {
            chosen.teams = None;
        }
        self.decode_shape(CacheShape::of(cache)).choice(chosen)
    }

    fn decode_shape(&self, cache: CacheShape) -> DecodeShape {
        let CacheShape { kv_heads, head_dim, dtype } = cache;
        let keys = self.past_len + self.rows - self.begin();
        DecodeShape { rows: self.rows, heads: self.heads, kv_heads, head_dim, keys, dtype }
    }

    fn record_decode(
        &self,
        recorder: &mut Recorder,
        q: &Buffer<f32>,
        cache: &KvCache,
        y: &Buffer<f32>,
        choice: DecodeChoice,
    ) {
        let shape = self.decode_shape(CacheShape::of(cache));
        let split_keys = shape.split_keys(choice);
        // With so many keys each, fewer may do.
        let splits = shape.keys.div_ceil(split_keys);
        let choice = DecodeChoice { splits, ..choice };
        if splits == 1 {
            self.record_split(recorder, q, cache, y, choice, split_keys);
            return;
        }
        let parts = recorder.temporary(self.rows * self.heads * splits * (cache.head_dim + 2));
        self.record_split(recorder, q, cache, &parts, choice, split_keys);
        let reduce = Reduce { first_row: self.first_row, rows: self.rows, heads: self.heads, splits };
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
        let group = self.heads / cache.kv_heads;
        let heads = choice.teams.map_or(workgroup_heads(group, cache.head_dim), |teams| teams.heads as usize);
        let groups = self.rows * self.heads / heads * choice.splits;
        let params = DecodeParams {
            rows: self.rows as u32,
            first_row: self.first_row as u32,
            heads: self.heads as u32,
            past_len: self.past_len as u32,
            capacity: cache.capacity as u32,
            splits: choice.splits as u32,
            split_keys: split_keys as u32,
            groups: groups as u32,
            window: self.window(),
            begin: self.begin() as u32,
            scale: self.scale,
            soft_cap: self.soft_cap.unwrap_or_default(),
        };
        let variant = self.decode_variant(recorder.gpu().caps(), CacheShape::of(cache), choice);
        let kernel = if choice.teams.is_some() { &TEAMS_KERNEL } else { &DECODE_KERNEL };
        let buffers = [q.into(), (&cache.k).into(), (&cache.v).into(), y.into()];
        recorder.expect_bytes(cache.bytes_of(self.past_len + self.rows - self.begin()));
        recorder.dispatch(kernel, &variant, &params, &buffers, groups);
    }

    fn tile_variant(&self, cache: CacheShape, slots: usize) -> Variant {
        self.variant(cache)
            .flag_if("WINDOW", self.window.is_some())
            .constant_is("CHUNKS", cache.head_dim.div_ceil(64) as u32)
            .constant_is("SET", slots.min(4) as u32)
            .constant_is("SETS", slots.div_ceil(4) as u32)
    }

    fn decode_variant(&self, caps: &Caps, cache: CacheShape, choice: DecodeChoice) -> Variant {
        let variant = self.variant(cache);
        if let Some(teams) = choice.teams {
            return teams.variant(variant.flag_if("SPLIT_K", choice.splits > 1), caps, cache.head_dim);
        }
        let eights = padded(cache.head_dim) / 8;
        // Loads of a software device do not overlap, and its compiler takes long for long functions.
        let most = if caps.is_software { 1 } else { DECODE_LOADS };
        let key_eights = (1..=most).rev().find(|&few| eights.is_multiple_of(few)).unwrap_or(1);
        variant
            .constant_is("WORKGROUP", DECODE_KEYS as u32)
            .constant_is("HEADS", workgroup_heads(self.heads / cache.kv_heads, cache.head_dim) as u32)
            .constant_is("KEY_EIGHTS", key_eights as u32)
            .constant_is("VALUES", most as u32)
    }

    /// What the variants of both kernels have.
    fn variant(&self, cache: CacheShape) -> Variant {
        let variant = cache.dtype.flag(Variant::new()).flag_if("SOFT_CAP", self.soft_cap.is_some());
        variant
            .constant_is("HEAD_DIM", cache.head_dim as u32)
            .constant_is("EIGHTS", padded(cache.head_dim) as u32 / 8)
            .constant_is("GROUP", (self.heads / cache.kv_heads) as u32)
    }
}

/// What variants depend on in a cache.
#[derive(Clone, Copy)]
struct CacheShape {
    kv_heads: usize,
    head_dim: usize,
    dtype: KvDtype,
}

impl CacheShape {
    fn of(cache: &KvCache) -> CacheShape {
        CacheShape { kv_heads: cache.kv_heads, head_dim: cache.head_dim, dtype: cache.dtype }
    }
}

/// Joins the splits of the decode kernel.
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

/// Heads of a workgroup of the decode kernel: as many of those that share a key head as workgroup memory has room for.
fn workgroup_heads(group: usize, head_dim: usize) -> usize {
    let fits = |heads: &usize| group.is_multiple_of(*heads) && heads * padded(head_dim) <= 1024;
    (1..=8).rev().find(fits).unwrap_or(1)
}

/// How many slots a lane of the tile kernel may have. Two are for devices whose registers are known to be few.
fn tile_choices(caps: &Caps, head_dim: usize) -> impl DoubleEndedIterator<Item = usize> + Clone {
    let registers = caps.registers;
    TILE_SLOTS.into_iter().filter(move |&slots| {
        let fits = registers.is_none_or(|registers| tile_registers(slots, head_dim) <= registers || slots == 2);
        let is_wanted = slots > 2 || registers.is_some();
        fits && is_wanted && (slots <= 4 || head_dim <= MANY_SLOTS_DIM)
    })
}

/// Registers that a lane of the tile kernel takes: sums, scores and limits of each slot, and what is loaded at a time; nearly as
/// much again for addresses and for loads ahead, by what Mesa's compilers make of it.
fn tile_registers(slots: usize, head_dim: usize) -> u32 {
    let values = slots * (4 * head_dim.div_ceil(64) + 8) + 16;
    (values * 9 / 5) as u32
}
