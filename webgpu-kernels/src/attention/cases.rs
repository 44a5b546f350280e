//! The cases of attention: shapes that reach every corner, those of a model's heads, and every choice for whoever times them.

use std::sync::Arc;

use super::{
    Attention, CacheShape, DECODE_KERNEL, DecodeChoice, DecodeShape, REDUCE_KERNEL, Reduce, TEAMS_KERNEL, TILE_KERNEL,
    Teams, choices, reduce_variant,
    reference::{Shape as AttentionShape, attention, join_splits},
    tile_choices,
};
use crate::{
    Case, CaseSet, Kernel, KvCache, KvDtype, Variant,
    cases::{Random, cache_row, with_outliers},
    gpu::{Buffer, Caps, Recorder},
    kernel::{CaseBuffer, product},
};

/// Shape of a case.
#[derive(Clone, Copy)]
pub(super) struct Shape {
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
    pub(super) const fn new(rows: usize, past_len: usize, heads: usize, kv_heads: usize, head_dim: usize) -> Shape {
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

    /// Words of the buffers of a case.
    pub(super) fn lens(&self, dtype: KvDtype) -> Vec<usize> {
        let cache = self.kv_heads * self.capacity() * dtype.row_words(self.head_dim);
        let row = self.rows * self.heads * self.head_dim;
        vec![row, cache, cache, row]
    }

    pub(super) fn cache_shape(&self, dtype: KvDtype) -> CacheShape {
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
        record: impl Fn(&mut Recorder, &Buffer<f32>, &KvCache, &Buffer<f32>) + Send + Sync + 'static,
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
            flops: product(&[4, pairs, heads, head_dim]),
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

    pub(super) fn attention(&self) -> Attention {
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
    let tiles = tile_choices(caps, heads.head_dim).map(|slots| (&TILE_KERNEL, tile_case(shape(9, 40), slots, dtype)));
    let mut cases: Vec<(&'static Kernel, Case)> = tiles.collect();
    cases.extend([
        // One variant, with its keys undivided and divided.
        (&DECODE_KERNEL, both(decode_case(caps, shape(1, 100), 1, dtype), decode_case(caps, shape(1, 200), 2, dtype))),
        (&REDUCE_KERNEL, reduce_case(1, heads.group, 2, heads.head_dim)),
    ]);
    for (splits, past_len) in [(1, 100), (2, 700)] {
        let shape = shape(1, past_len);
        // A window may leave too few keys to divide; the form is that of as many without.
        let all = DecodeShape { keys: past_len + 1, ..shape.attention().decode_shape(shape.cache_shape(dtype)) };
        let teams = choices(caps, &all)[0].teams;
        if teams.is_some() {
            cases.push((&TEAMS_KERNEL, choice_case(caps, shape, DecodeChoice { teams, splits }, dtype)));
        }
    }
    cases
}

/// Two cases of one variant as one.
fn both(one: Case, other: Case) -> Case {
    let (one, other) = (Arc::new(one), Arc::new(other));
    let (made, recorded) = ((one.clone(), other.clone()), (one.clone(), other.clone()));
    Case {
        label: format!("{}; {}", one.label, other.label),
        variant: one.variant.clone(),
        flops: one.flops + other.flops,
        bytes: one.bytes + other.bytes,
        tolerance: one.tolerance.min(other.tolerance),
        buffers: Box::new(move || [(made.0.buffers)(), (made.1.buffers)()].into_iter().flatten().collect()),
        record: Box::new(move |recorder, b| {
            let (first, second) = b.split_at(b.len() / 2);
            (recorded.0.record)(recorder, first);
            (recorded.1.record)(recorder, second);
        }),
        reference: Box::new(move |b| {
            let (first, second) = b.split_at(b.len() / 2);
            [(one.reference)(first), (other.reference)(second)].into_iter().flatten().collect()
        }),
    }
}

/// Every shape with a cache of each kind, but for a few of the kinds: a software driver takes seconds for a variant.
fn caches<S: Copy>(shapes: &[S]) -> impl Iterator<Item = (S, KvDtype)> {
    let of = |(i, shape): (usize, &S)| {
        let (shape, kinds) = (*shape, if i % 3 == 0 { 3 } else { 2 });
        KvDtype::ALL.into_iter().take(kinds).map(move |dtype| (shape, dtype))
    };
    shapes.iter().enumerate().flat_map(of)
}

pub(super) fn tile_cases(caps: &Caps, set: CaseSet) -> Vec<Case> {
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
    all.flat_map(|(shape, dtype)| tile_choices(caps, shape.head_dim).map(move |slots| tile_case(shape, slots, dtype)))
        .collect()
}

pub(super) fn tile_case(shape: Shape, slots: usize, dtype: KvDtype) -> Case {
    let variant = shape.attention().tile_variant(shape.cache_shape(dtype), slots);
    shape.case(dtype, variant, move |recorder, q, cache, y| shape.attention().record_tile(recorder, q, cache, y, slots))
}

pub(super) fn decode_cases(caps: &Caps, set: CaseSet) -> Vec<Case> {
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
    choice_case(caps, shape, DecodeChoice { teams: None, splits }, dtype)
}

pub(super) fn choice_case(caps: &Caps, shape: Shape, choice: DecodeChoice, dtype: KvDtype) -> Case {
    let variant = shape.attention().decode_variant(caps, shape.cache_shape(dtype), choice);
    shape.case(dtype, variant, move |recorder, q, cache, y| {
        shape.attention().record_decode(recorder, q, cache, y, choice);
    })
}

/// The choices for a shape, each as a case: for whoever times them.
pub fn choice_cases(caps: &Caps, shape: &DecodeShape) -> Vec<(DecodeChoice, Case)> {
    let DecodeShape { rows, heads, kv_heads, head_dim, keys, dtype } = *shape;
    let case_of = Shape::new(rows, keys - rows, heads, kv_heads, head_dim);
    choices(caps, shape).into_iter().map(|choice| (choice, choice_case(caps, case_of, choice, dtype))).collect()
}

pub(super) fn teams_cases(caps: &Caps, set: CaseSet) -> Vec<Case> {
    let teams = |workgroup, heads, keys| Teams { workgroup, heads, keys };
    let shapes: &[(Shape, Teams, usize)] = match set {
        CaseSet::Test => &[
            (Shape::new(1, 0, 9, 3, 64), teams(128, 3, 4), 1),
            (Shape::new(1, 127, 24, 8, 128), teams(256, 3, 4), 1),
            (Shape::new(1, 300, 9, 3, 64), teams(128, 1, 2), 3),
            (Shape::new(1, 1000, 4, 1, 128), teams(128, 4, 8), 4),
            (Shape::new(3, 254, 14, 2, 64), teams(64, 1, 4), 3),
            (Shape::new(1, 200, 16, 1, 32), teams(128, 4, 4), 2),
            (Shape::new(1, 40, 8, 2, 256), teams(64, 4, 2), 1),
            (Shape::new(1, 300, 4, 2, 16).window(16), teams(256, 2, 4), 1),
            (Shape::new(3, 400, 8, 1, 64).window(200), teams(128, 2, 4), 2),
            (Shape::new(2, 20, 2, 2, 32).window(1), teams(64, 1, 4), 1),
            (Shape::new(1, 700, 16, 8, 256).soft_cap(50.0).window(512), teams(128, 2, 4), 4),
            (Shape::new(1, 300, 9, 3, 64).soft_cap(20.0), teams(256, 3, 4), 3),
            (Shape::new(1, 8191, 4, 2, 32), teams(256, 2, 4), 64),
            (Shape::new(1, 200, 4, 2, 64).with_outliers(), teams(128, 2, 4), 1),
            (Shape::new(2, 200, 4, 2, 64).with_outliers(), teams(256, 2, 4), 2),
            (Shape::new(4, 0, 2, 1, 64), teams(128, 2, 4), 1),
        ],
        CaseSet::Bench => &[
            (Shape::new(1, 127, 24, 8, 128), teams(256, 3, 4), 1),
            (Shape::new(1, 2047, 24, 8, 128), teams(256, 3, 4), 16),
        ],
    };
    let suitable: Vec<_> = shapes
        .iter()
        .filter(|(shape, teams, _)| teams.suits(caps, shape.heads / shape.kv_heads, shape.head_dim))
        .copied()
        .collect();
    let case =
        |((shape, teams, splits), dtype)| choice_case(caps, shape, DecodeChoice { teams: Some(teams), splits }, dtype);
    caches(&suitable).map(case).collect()
}

pub(super) fn reduce_cases(_: &Caps, set: CaseSet) -> Vec<Case> {
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
        flops: product(&[2, rows, heads, splits, head_dim]),
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
