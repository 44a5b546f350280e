//! `y[r, h] = sum over p of softmax_p(scale * q[r, h] . k[h', p]) * v[h', p]`, `p <= past_len + r`, where `h'` is the key
//! head that serves `h`: causal attention over a cache that holds the keys and values of the rows already. Scores may be
//! capped, and rows may see a window of the keys; keys before the window of the first row are not visited.
//!
//! Three kernels: `attention_tile` for many rows; `attention_decode` for few, one row at a time; and, where the context
//! is long, `attention_decode` with `split_k`, several workgroups sharing the keys of a row, and `attention_reduce` to
//! join what they found.

mod reference;

use crate::{
    Case, CaseSet, Kernel, KvCache, KvDtype, Variant,
    cases::{Random, cache_row, with_outliers},
    gpu::{Buffer, Caps, Recorder},
    kernel::{Access, CaseBuffer, Params, params},
    kv::padded,
};
pub use reference::{Shape as AttentionShape, attention, join_splits};

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

/// The record of the kernel that joins what the splits found.
pub static REDUCE_KERNEL: Kernel = Kernel {
    name: "attention_reduce",
    wgsl: include_str!("reduce.wgsl"),
    bindings: &[Access::Read, Access::ReadWrite],
    params: ReduceParams::LAYOUT,
    cases: reduce_cases,
};

/// Slots (a row and a head) of a workgroup of the tile kernel, in quads of a lane: as many as registers have room for.
const TILE_QUADS: [usize; 2] = [2, 1];
const QUAD_SLOTS: usize = 32;
/// Widest head of which a lane has two quads.
const MANY_SLOTS_DIM: usize = 128;
/// Lanes, and keys per tile, of the decode kernel.
const DECODE_KEYS: usize = 128;
/// Eights of a key, and values, that a lane of the decode kernel loads at a time.
const DECODE_LOADS: usize = 8;
/// Lanes of the reduce kernel, and the most splits.
const MAX_SPLITS: usize = 64;
/// Workgroups of the decode kernel that keep a large device busy.
const ENOUGH_GROUPS: usize = 256;
/// The same of the tile kernel.
const ENOUGH_TILES: usize = 64;
/// More rows than this go to the tile kernel.
const DECODE_ROWS: usize = 4;

impl Attention {
    /// `q`, `y`: [any, heads * head_dim].
    pub fn record(&self, recorder: &mut Recorder, q: &Buffer<f32>, cache: &KvCache, y: &Buffer<f32>) {
        let end = self.past_len + self.rows;
        assert!(end <= cache.capacity, "attention: {end} tokens in a cache for {}", cache.capacity);
        assert!(self.heads.is_multiple_of(cache.kv_heads), "attention: {} over {}", self.heads, cache.kv_heads);
        let keys = self.window.unwrap_or(usize::MAX).min(self.past_len + self.rows);
        recorder.expect_work(&[4, self.rows, keys, self.heads, cache.head_dim]);
        if self.rows > DECODE_ROWS {
            self.record_tile(recorder, q, cache, y, self.tile_quads(CacheShape::of(cache)));
        } else {
            self.record_decode(recorder, q, cache, y, self.splits(cache));
        }
    }

    fn record_tile(&self, recorder: &mut Recorder, q: &Buffer<f32>, cache: &KvCache, y: &Buffer<f32>, quads: usize) {
        let groups = self.tile_groups(CacheShape::of(cache), quads);
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
        let variant = self.tile_variant(CacheShape::of(cache), quads);
        let buffers = [q.into(), (&cache.k).into(), (&cache.v).into(), y.into()];
        recorder.expect_bytes(cache.bytes_of(self.past_len + self.rows - self.begin()));
        recorder.dispatch(&TILE_KERNEL, &variant, &params, &buffers, groups);
    }

    /// Workgroups of the tile kernel.
    fn tile_groups(&self, cache: CacheShape, quads: usize) -> usize {
        (self.rows * self.heads / cache.kv_heads).div_ceil(QUAD_SLOTS * quads) * cache.kv_heads
    }

    /// Quads of slots of a lane: fewer where there would be too few workgroups for a large device.
    fn tile_quads(&self, cache: CacheShape) -> usize {
        let enough = |quads: &usize| self.tile_groups(cache, *quads) >= ENOUGH_TILES;
        tile_choices(cache.head_dim).find(enough).unwrap_or(1)
    }

    /// The window, or one that nothing is beyond.
    fn window(&self) -> u32 {
        self.window.map_or(u32::MAX, |window| window as u32)
    }

    /// The first key that any row sees.
    fn begin(&self) -> usize {
        self.window.map_or(0, |window| (self.past_len + 1).saturating_sub(window))
    }

    /// Tiles of keys that the rows see.
    fn key_tiles(&self) -> usize {
        (self.past_len + self.rows - self.begin()).div_ceil(DECODE_KEYS)
    }

    /// Ranges that the keys are divided in: one per tile of keys, as long as that makes workgroups the device has need of.
    fn splits(&self, cache: &KvCache) -> usize {
        let groups = self.rows * self.heads / workgroup_heads(self.heads / cache.kv_heads, cache.head_dim);
        self.key_tiles().min(ENOUGH_GROUPS.div_ceil(groups)).min(MAX_SPLITS)
    }

    fn record_decode(&self, recorder: &mut Recorder, q: &Buffer<f32>, cache: &KvCache, y: &Buffer<f32>, splits: usize) {
        let tiles = self.key_tiles();
        let split_tiles = tiles.div_ceil(splits);
        // With so many tiles each, fewer may do.
        let splits = tiles.div_ceil(split_tiles);
        if splits == 1 {
            self.record_split(recorder, q, cache, y, 1, split_tiles);
            return;
        }
        let parts = recorder.temporary(self.rows * self.heads * splits * (cache.head_dim + 2));
        self.record_split(recorder, q, cache, &parts, splits, split_tiles);
        let reduce = Reduce { first_row: self.first_row, rows: self.rows, heads: self.heads, splits };
        reduce.record(recorder, cache.head_dim, &parts, y);
    }

    fn record_split(
        &self,
        recorder: &mut Recorder,
        q: &Buffer<f32>,
        cache: &KvCache,
        y: &Buffer<f32>,
        splits: usize,
        split_tiles: usize,
    ) {
        let group = self.heads / cache.kv_heads;
        let groups = self.rows * self.heads / workgroup_heads(group, cache.head_dim) * splits;
        let params = DecodeParams {
            rows: self.rows as u32,
            first_row: self.first_row as u32,
            heads: self.heads as u32,
            past_len: self.past_len as u32,
            capacity: cache.capacity as u32,
            splits: splits as u32,
            split_keys: (split_tiles * DECODE_KEYS) as u32,
            groups: groups as u32,
            window: self.window(),
            begin: self.begin() as u32,
            scale: self.scale,
            soft_cap: self.soft_cap.unwrap_or_default(),
        };
        let variant = self.decode_variant(recorder.gpu().caps(), CacheShape::of(cache), splits > 1);
        let buffers = [q.into(), (&cache.k).into(), (&cache.v).into(), y.into()];
        recorder.expect_bytes(cache.bytes_of(self.past_len + self.rows - self.begin()));
        recorder.dispatch(&DECODE_KERNEL, &variant, &params, &buffers, groups);
    }

    fn tile_variant(&self, cache: CacheShape, quads: usize) -> Variant {
        self.variant(cache)
            .flag_if("WINDOW", self.window.is_some())
            .constant_is("CHUNKS", cache.head_dim.div_ceil(64) as u32)
            .constant_is("QUADS_S", quads as u32)
    }

    fn decode_variant(&self, caps: &Caps, cache: CacheShape, is_split: bool) -> Variant {
        let eights = padded(cache.head_dim) / 8;
        // Loads of a software device do not overlap, and its compiler takes long for long functions.
        let most = if caps.is_software { 1 } else { DECODE_LOADS };
        let key_eights = (1..=most).rev().find(|&few| eights.is_multiple_of(few)).unwrap_or(1);
        self.variant(cache)
            .flag_if("SPLIT_K", is_split)
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
        recorder.dispatch(&REDUCE_KERNEL, &reduce_variant(head_dim), &params, &[parts.into(), y.into()], groups);
    }
}

fn reduce_variant(head_dim: usize) -> Variant {
    Variant::new().constant_is("WORKGROUP", MAX_SPLITS as u32).constant_is("HEAD_DIM", head_dim as u32)
}

/// Heads of a workgroup of the decode kernel: as many of those that share a key head as workgroup memory has room for.
fn workgroup_heads(group: usize, head_dim: usize) -> usize {
    let fits = |heads: &usize| group.is_multiple_of(*heads) && heads * padded(head_dim) <= 1024;
    (1..=8).rev().find(fits).unwrap_or(1)
}

/// Shape of a case.
#[derive(Clone, Copy)]
struct Shape {
    rows: usize,
    past_len: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    soft_cap: Option<f32>,
    window: Option<usize>,
    has_outliers: bool,
}

impl Shape {
    const fn new(rows: usize, past_len: usize, heads: usize, kv_heads: usize, head_dim: usize) -> Shape {
        Shape { rows, past_len, heads, kv_heads, head_dim, soft_cap: None, window: None, has_outliers: false }
    }

    const fn soft_cap(self, cap: f32) -> Shape {
        Shape { soft_cap: Some(cap), ..self }
    }

    const fn window(self, window: usize) -> Shape {
        Shape { window: Some(window), ..self }
    }

    const fn with_outliers(self) -> Shape {
        Shape { has_outliers: true, ..self }
    }

    fn capacity(&self) -> usize {
        self.past_len + self.rows + 5
    }

    fn cache_shape(&self, dtype: KvDtype) -> CacheShape {
        CacheShape { kv_heads: self.kv_heads, head_dim: self.head_dim, dtype }
    }

    fn cache(&self, dtype: KvDtype, k: &Buffer<u32>, v: &Buffer<u32>) -> KvCache {
        let Shape { kv_heads, head_dim, .. } = *self;
        KvCache { k: k.clone(), v: v.clone(), kv_heads, capacity: self.capacity(), head_dim, dtype }
    }

    /// Words of a cache of random values, and NaN where no key is.
    fn cache_words(&self, dtype: KvDtype, random: &mut Random) -> Vec<u32> {
        let positions = (0..self.kv_heads).flat_map(|_| 0..self.capacity());
        let is_key = |position| position < self.past_len + self.rows;
        positions.flat_map(|position| cache_row(dtype, self.head_dim, is_key(position), random)).collect()
    }

    /// A case of this shape. `record`: buffers are q, k, v, y.
    fn case(
        self,
        dtype: KvDtype,
        variant: Variant,
        record: impl Fn(&mut Recorder, &Buffer<f32>, &KvCache, &Buffer<f32>) + 'static,
    ) -> Case {
        let Shape { rows, past_len, heads, kv_heads, head_dim, soft_cap, window, has_outliers } = self;
        // A row sees the keys up to itself.
        let seen = |row: usize| (past_len + row + 1).min(window.unwrap_or(usize::MAX));
        let pairs: usize = (0..rows).map(seen).sum();
        let keys = rows - 1 + seen(0);
        let mut label = format!("{rows} after {past_len}, {heads}/{kv_heads} heads of {head_dim}");
        if let Some(window) = window {
            label += &format!(", window of {window}");
        }
        if has_outliers {
            label += ", outliers";
        }
        Case {
            label,
            variant,
            flops: 4 * (pairs * heads * head_dim) as u64,
            bytes: (8 * keys * kv_heads * dtype.row_words(head_dim) + 8 * rows * heads * head_dim) as u64,
            // Scores of a million have few digits behind the point in f32.
            tolerance: if has_outliers { 1e-7 } else { 1e-10 },
            buffers: Box::new(move || {
                let mut random = Random::new((heads * keys) as u64);
                // Large enough for a softmax that is neither flat nor one key.
                let q: Vec<f32> = random.values(rows * heads * head_dim).iter().map(|v| 8.0 * v).collect();
                let q = if has_outliers { with_outliers(q) } else { q };
                let k = CaseBuffer::words(self.cache_words(dtype, &mut random));
                let v = CaseBuffer::words(self.cache_words(dtype, &mut random));
                vec![CaseBuffer::input(&q), k, v, CaseBuffer::output(rows * heads * head_dim)]
            }),
            record: Box::new(move |recorder, b| {
                record(recorder, &b[0].cast(), &self.cache(dtype, &b[1], &b[2]), &b[3].cast());
            }),
            reference: Box::new(move |b| {
                let cache = |words: &[u32]| dtype.values(head_dim, words);
                let mut y = vec![0.0; rows * heads * head_dim];
                let shape = AttentionShape {
                    heads,
                    kv_heads,
                    head_dim,
                    past_len,
                    capacity: self.capacity(),
                    scale: self.scale(),
                    soft_cap,
                    window,
                };
                attention(shape, b[0].values(), &cache(&b[1].words), &cache(&b[2].words), &mut y);
                vec![y]
            }),
        }
    }

    fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    fn attention(&self) -> Attention {
        let Shape { rows, past_len, heads, soft_cap, window, .. } = *self;
        Attention { first_row: 0, rows, heads, past_len, scale: self.scale(), soft_cap, window }
    }
}

/// Heads as the variants of this folder's kernels depend on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadShape {
    /// Query heads of a key head.
    pub group: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Whether scores are capped.
    pub soft_cap: bool,
    /// Whether rows see a window of the keys.
    pub window: bool,
}

/// Small cases of a model's attention.
pub(crate) fn cases_of(caps: &Caps, heads: HeadShape, dtype: KvDtype) -> Vec<(&'static Kernel, Case)> {
    let shape = |rows, past_len| Shape {
        soft_cap: heads.soft_cap.then_some(20.0),
        window: heads.window.then_some(150),
        ..Shape::new(rows, past_len, heads.group, 1, heads.head_dim)
    };
    let tiles = tile_choices(heads.head_dim).map(|quads| (&TILE_KERNEL, tile_case(shape(9, 40), quads, dtype)));
    let mut cases: Vec<(&'static Kernel, Case)> = tiles.collect();
    cases.extend([
        (&DECODE_KERNEL, decode_case(caps, shape(1, 100), 1, dtype)),
        (&DECODE_KERNEL, decode_case(caps, shape(1, 200), 2, dtype)),
        (&REDUCE_KERNEL, reduce_case(1, heads.group, 2, heads.head_dim)),
    ]);
    cases
}

/// How many quads of slots a lane of the tile kernel may have.
fn tile_choices(head_dim: usize) -> impl Iterator<Item = usize> {
    TILE_QUADS.into_iter().filter(move |&quads| quads == 1 || head_dim <= MANY_SLOTS_DIM)
}

/// Every shape with a cache of each kind, but for a few of the kinds: a software driver takes seconds for a variant.
fn caches<S: Copy>(shapes: &[S]) -> impl Iterator<Item = (S, KvDtype)> {
    let of = |(i, shape): (usize, &S)| {
        let (shape, kinds) = (*shape, if i % 3 == 0 { 3 } else { 2 });
        KvDtype::ALL.into_iter().take(kinds).map(move |dtype| (shape, dtype))
    };
    shapes.iter().enumerate().flat_map(of)
}

fn tile_cases(_: &Caps, set: CaseSet) -> Vec<Case> {
    let shapes: &[Shape] = match set {
        CaseSet::Test => &[
            Shape::new(5, 0, 9, 3, 64),
            Shape::new(33, 0, 6, 2, 64),
            Shape::new(40, 70, 3, 1, 128),
            Shape::new(1, 31, 4, 1, 16),
            Shape::new(9, 3, 2, 2, 20),
            Shape::new(20, 10, 2, 1, 256),
            Shape::new(6, 10, 7, 1, 96),
            Shape::new(40, 0, 4, 2, 16).window(16),
            Shape::new(33, 70, 8, 1, 64).window(40),
            Shape::new(70, 5, 2, 2, 20).window(1),
            Shape::new(20, 10, 8, 4, 256).soft_cap(5.0),
            Shape::new(40, 90, 4, 2, 128).soft_cap(50.0).window(64),
            Shape::new(9, 3, 2, 2, 20).soft_cap(1.0).window(500),
            Shape::new(64, 0, 14, 2, 64),
            Shape::new(7, 25, 32, 32, 96),
            Shape::new(31, 1, 8, 8, 80),
            Shape::new(16, 8160, 4, 2, 32),
            Shape::new(16, 8160, 4, 2, 32).window(4096),
            Shape::new(5, 3, 2, 1, 512),
            Shape::new(32, 32, 4, 2, 64).with_outliers(),
            Shape::new(6, 70, 4, 2, 128).soft_cap(50.0).with_outliers(),
        ],
        CaseSet::Bench => &[
            Shape::new(32, 2048, 24, 8, 128),
            Shape::new(512, 0, 24, 8, 128),
            Shape::new(512, 2048, 24, 8, 128),
            Shape::new(2048, 0, 24, 8, 128),
            Shape::new(2048, 0, 32, 8, 64),
        ],
    };
    let all = caches(shapes);
    all.flat_map(|(shape, dtype)| tile_choices(shape.head_dim).map(move |quads| tile_case(shape, quads, dtype)))
        .collect()
}

fn tile_case(shape: Shape, quads: usize, dtype: KvDtype) -> Case {
    let variant = shape.attention().tile_variant(shape.cache_shape(dtype), quads);
    shape.case(dtype, variant, move |recorder, q, cache, y| shape.attention().record_tile(recorder, q, cache, y, quads))
}

fn decode_cases(caps: &Caps, set: CaseSet) -> Vec<Case> {
    let shapes: &[(Shape, usize)] = match set {
        CaseSet::Test => &[
            (Shape::new(1, 0, 9, 3, 64), 1),
            (Shape::new(1, 127, 24, 8, 128), 1),
            (Shape::new(1, 300, 9, 3, 64), 1),
            (Shape::new(1, 300, 9, 3, 64), 3),
            (Shape::new(1, 1000, 4, 1, 128), 4),
            (Shape::new(3, 254, 14, 2, 64), 3),
            (Shape::new(2, 10, 2, 2, 20), 1),
            (Shape::new(1, 200, 16, 1, 32), 2),
            (Shape::new(1, 40, 8, 2, 256), 1),
            (Shape::new(1, 40, 3, 1, 96), 1),
            (Shape::new(1, 300, 4, 2, 16).window(16), 1),
            (Shape::new(3, 400, 8, 1, 64).window(200), 2),
            (Shape::new(4, 126, 9, 3, 64).window(128), 2),
            (Shape::new(2, 20, 2, 2, 20).window(1), 1),
            (Shape::new(1, 40, 8, 4, 256).soft_cap(5.0), 1),
            (Shape::new(1, 700, 16, 8, 256).soft_cap(50.0).window(512), 4),
            (Shape::new(1, 300, 9, 3, 64).soft_cap(20.0), 3),
            (Shape::new(1, 63, 32, 32, 96), 1),
            (Shape::new(1, 255, 8, 8, 80), 2),
            (Shape::new(4, 0, 2, 1, 512), 1),
            (Shape::new(1, 8191, 4, 2, 32), 1),
            (Shape::new(1, 8191, 4, 2, 32), 64),
            (Shape::new(1, 8191, 4, 2, 32).window(4096), 32),
            (Shape::new(1, 200, 4, 2, 64).with_outliers(), 1),
            (Shape::new(2, 200, 4, 2, 64).with_outliers(), 2),
            (Shape::new(1, 200, 4, 2, 64).soft_cap(50.0).with_outliers(), 2),
        ],
        CaseSet::Bench => &[
            (Shape::new(1, 127, 24, 8, 128), 1),
            (Shape::new(1, 511, 24, 8, 128), 1),
            (Shape::new(1, 511, 24, 8, 128), 4),
            (Shape::new(1, 2047, 24, 8, 128), 16),
            (Shape::new(1, 8191, 24, 8, 128), 32),
        ],
    };
    let all = caches(shapes);
    all.map(|((shape, splits), dtype)| decode_case(caps, shape, splits, dtype)).collect()
}

fn decode_case(caps: &Caps, shape: Shape, splits: usize, dtype: KvDtype) -> Case {
    let variant = shape.attention().decode_variant(caps, shape.cache_shape(dtype), splits > 1);
    shape.case(dtype, variant, move |recorder, q, cache, y| {
        shape.attention().record_decode(recorder, q, cache, y, splits);
    })
}

fn reduce_cases(_: &Caps, set: CaseSet) -> Vec<Case> {
    let shapes: &[(usize, usize, usize, usize)] = match set {
        CaseSet::Test => &[(1, 9, 3, 64), (2, 4, 64, 128), (1, 2, 1, 20), (4, 8, 7, 256), (3, 1, 33, 80)],
        CaseSet::Bench => &[(1, 24, 16, 128)],
    };
    shapes.iter().map(|&(rows, heads, splits, head_dim)| reduce_case(rows, heads, splits, head_dim)).collect()
}

fn reduce_case(rows: usize, heads: usize, splits: usize, head_dim: usize) -> Case {
    Case {
        label: format!("{rows}, {heads} heads of {head_dim}, {splits} splits"),
        variant: reduce_variant(head_dim),
        flops: 2 * (rows * heads * splits * head_dim) as u64,
        bytes: 4 * (rows * heads * (splits * (head_dim + 2) + head_dim)) as u64,
        tolerance: 1e-10,
        buffers: Box::new(move || {
            let mut parts = Random::new(splits as u64).values(rows * heads * splits * (head_dim + 2));
            for (i, part) in parts.chunks_exact_mut(head_dim + 2).enumerate() {
                let l = &mut part[head_dim + 1];
                *l = l.abs() + 0.5;
                // A split without keys, as the last of an early row is.
                if splits > 1 && i % splits == splits - 1 {
                    part.fill(0.0);
                    part[head_dim] = -3.0e38;
                }
            }
            vec![CaseBuffer::input(&parts), CaseBuffer::output(rows * heads * head_dim)]
        }),
        record: Box::new(move |recorder, b| {
            let reduce = Reduce { first_row: 0, rows, heads, splits };
            reduce.record(recorder, head_dim, &b[0].cast(), &b[1].cast());
        }),
        reference: Box::new(move |b| vec![join_splits(b[0].values(), splits, head_dim)]),
    }
}
