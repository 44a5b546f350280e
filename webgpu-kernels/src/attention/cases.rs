//! Cases of attention: shapes that reach every corner, shapes of a model's heads, and every choice, for timing.

use std::sync::Arc;

use super::{
    Attention, AttentionShape, Buffers, DECODE_KERNEL, DecodeChoice, FewRows, REDUCE_KERNEL, TEAMS_KERNEL, TILE_KERNEL,
    Teams, Tiles,
    decode::{Reduce, decode_variant, reduce_variant},
    reference::{attention, join_splits},
    teams::choices,
    tile::{default_slots, tile_choices, tile_variant},
};
use crate::{
    Case, CaseSet, Kernel, KvDtype, Variant,
    cases::{CaseRows, Random, cache_row, with_outliers},
    gpu::{Caps, Recorder},
    kernel::{CaseBuffer, product},
    kv::DeviceSpan,
};

/// Attention of a case.
#[derive(Clone)]
pub(super) struct Sizes {
    rows: CaseRows,
    shape: AttentionShape,
    has_outliers: bool,
}

/// Attention without a cap and a window.
pub(super) fn plain_shape(heads: usize, kv_heads: usize, head_dim: usize) -> AttentionShape {
    let scale = 1.0 / (head_dim as f32).sqrt();
    AttentionShape { heads, kv_heads, head_dim, rotary_dim: head_dim, scale, soft_cap: None, window: None }
}

impl Sizes {
    /// Rows of one sequence.
    pub(super) fn new(rows: usize, past_len: usize, heads: usize, kv_heads: usize, head_dim: usize) -> Sizes {
        Sizes::batch(&[(rows, past_len)], [heads, kv_heads, head_dim])
    }

    /// Rows of several sequences: number of rows of each, and position of the first one.
    fn batch(spans: &[(usize, usize)], [heads, kv_heads, head_dim]: [usize; 3]) -> Sizes {
        let shape = plain_shape(heads, kv_heads, head_dim);
        Sizes { rows: CaseRows::new(spans), shape, has_outliers: false }
    }

    fn soft_cap(mut self, cap: f32) -> Sizes {
        self.shape.soft_cap = Some(cap);
        self
    }

    fn window(mut self, window: usize) -> Sizes {
        self.shape.window = Some(window);
        self
    }

    fn with_outliers(self) -> Sizes {
        Sizes { has_outliers: true, ..self }
    }

    fn kv_shape(&self) -> [usize; 2] {
        [self.shape.kv_heads, self.shape.head_dim]
    }

    /// Words of the buffers of a case.
    pub(super) fn lens(&self, dtype: KvDtype) -> Vec<usize> {
        let AttentionShape { heads, kv_heads, head_dim, .. } = self.shape;
        let row = self.rows.count() * heads * head_dim;
        let pool = self.rows.pool_rows(kv_heads) * dtype.row_words(head_dim);
        vec![row, pool, self.rows.buffer().words.len(), row]
    }

    /// The spans as on the device, without the places of their pages.
    fn device_spans(&self) -> Vec<DeviceSpan> {
        let spans = self.rows.spans().into_iter();
        spans.map(|span| DeviceSpan { first_row: 0, rows: span.rows, past_len: span.past_len, pages: 0 }).collect()
    }

    /// The division of the rows, if each sequence has few.
    pub(super) fn few_rows(&self) -> FewRows {
        FewRows::of(self.shape, &self.device_spans())
    }

    /// A case of these sizes. Buffers are those of the kernels' bindings: q, pool, rows, y. The pool has NaN where no key is.
    fn case(
        self,
        dtype: KvDtype,
        variant: Variant,
        record: impl Fn(&mut Recorder, AttentionShape, Buffers<'_>) + Send + Sync + 'static,
    ) -> Case {
        let AttentionShape { heads, kv_heads, head_dim, window, .. } = self.shape;
        let (shape, spans, has_outliers) = (self.shape, self.device_spans(), self.has_outliers);
        let positions = spans.iter().flat_map(|span| span.past_len..span.past_len + span.rows);
        let pairs: usize = positions.map(|position| shape.seen_at(position)).sum();
        let keys: usize = spans.iter().map(|span| shape.seen_by(span)).sum();
        let values = self.rows.count() * heads * head_dim;
        let mut label = format!("{}, {heads}/{kv_heads} heads of {head_dim}", self.rows.label());
        if let Some(window) = window {
            label += &format!(", window of {window}");
        }
        if has_outliers {
            label += ", outliers";
        }
        let (kv_shape, made, recorded, expected) =
            (self.kv_shape(), self.rows.clone(), self.rows.clone(), self.rows.clone());
        Case {
            label,
            variant,
            flops: product(&[4, pairs, heads, head_dim]),
            bytes: (8 * keys * kv_heads * dtype.row_words(head_dim) + 8 * values) as u64,
            // In f32, scores of a million have few digits after the point.
            tolerance: if has_outliers { 1e-7 } else { 1e-10 },
            buffers: Box::new(move || {
                let mut random = Random::new((heads * keys) as u64);
                // The factor makes a softmax that is neither flat nor a single key.
                let q: Vec<f32> = random.values(values).iter().map(|v| 8.0 * v).collect();
                let q = if has_outliers { with_outliers(q) } else { q };
                let absent = cache_row(dtype, head_dim, false, &mut random);
                let pool = made.pool_words(kv_shape, dtype, |span| span.past_len + span.rows, &absent, &mut random);
                vec![CaseBuffer::input(&q), CaseBuffer::words(pool), made.buffer(), CaseBuffer::output(values)]
            }),
            record: Box::new(move |recorder, b| {
                let (q, y) = (b[0].cast(), b[3].cast());
                let pool = recorded.pool(&b[1], kv_shape, dtype);
                let rows = recorded.on_device(recorder, &b[2]);
                record(recorder, shape, Buffers { q: &q, pool: &pool, rows: &rows, y: &y });
            }),
            reference: Box::new(move |b| {
                let mut y = vec![0.0; values];
                attention(shape, &expected.spans(), b[0].values(), &dtype.values(head_dim, &b[1].words), &mut y);
                vec![y]
            }),
        }
    }
}

/// Small cases of a model's attention: its variants do not depend on the number of key heads, on the cap and on the window's width.
pub(crate) fn cases_of(caps: &Caps, model: AttentionShape, dtype: KvDtype) -> Vec<(&'static Kernel, Case)> {
    let (group, head_dim) = (model.group(), model.head_dim);
    let sizes = |rows, past_len| {
        let mut sizes = Sizes::new(rows, past_len, group, 1, head_dim);
        sizes.shape.soft_cap = model.soft_cap.map(|_| 20.0);
        sizes.shape.window = model.window.map(|_| 150);
        sizes
    };
    let tiles = tile_choices(caps, head_dim).map(|slots| (&TILE_KERNEL, tile_case(sizes(9, 40), slots, dtype)));
    let mut cases: Vec<(&'static Kernel, Case)> = tiles.collect();
    cases.extend([
        // One variant, without and with split-K.
        (&DECODE_KERNEL, both(decode_case(caps, sizes(1, 100), 1, dtype), decode_case(caps, sizes(1, 200), 2, dtype))),
        (&REDUCE_KERNEL, reduce_case(1, group, 2, head_dim)),
    ]);
    for (splits, past_len) in [(1, 100), (2, 700)] {
        // A window may leave too few keys to split. Take the variant for as many keys without a window.
        let shape = AttentionShape { window: None, ..sizes(1, past_len).shape };
        let teams = choices(caps, &FewRows { shape, rows: 1, keys: past_len + 1 })[0].teams;
        if teams.is_some() {
            cases.push((&TEAMS_KERNEL, choice_case(caps, sizes(1, past_len), DecodeChoice { teams, splits }, dtype)));
        }
    }
    cases
}

/// Joins two cases of one variant.
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

/// Every shape with two or three data types of the pool. Not with all: a software driver takes seconds for a variant.
fn dtypes<S: Clone>(shapes: &[S]) -> impl Iterator<Item = (S, KvDtype)> {
    let of = |(i, shape): (usize, &S)| {
        let (shape, kinds) = (shape.clone(), if i % 3 == 0 { 3 } else { 2 });
        KvDtype::ALL.into_iter().take(kinds).map(move |dtype| (shape.clone(), dtype))
    };
    shapes.iter().enumerate().flat_map(of)
}

pub(super) fn tile_cases(caps: &Caps, set: CaseSet) -> Vec<Case> {
    let shapes: &[Sizes] = match set {
        CaseSet::Test => &[
            Sizes::new(5, 0, 9, 3, 64),
            Sizes::new(33, 0, 6, 2, 64),
            Sizes::new(40, 70, 3, 1, 128),
            Sizes::new(1, 31, 4, 1, 16),
            Sizes::new(9, 3, 2, 2, 20),
            Sizes::new(20, 10, 2, 1, 256),
            Sizes::new(6, 10, 7, 1, 96),
            Sizes::new(40, 0, 4, 2, 16).window(16),
            Sizes::new(33, 70, 8, 1, 64).window(40),
            Sizes::new(70, 5, 2, 2, 20).window(1),
            Sizes::new(20, 10, 8, 4, 256).soft_cap(5.0),
            Sizes::new(40, 90, 4, 2, 128).soft_cap(50.0).window(64),
            Sizes::new(9, 3, 2, 2, 20).soft_cap(1.0).window(500),
            Sizes::new(64, 0, 14, 2, 64),
            Sizes::new(7, 25, 32, 32, 96),
            Sizes::new(31, 1, 8, 8, 80),
            Sizes::new(16, 8160, 4, 2, 32),
            Sizes::new(16, 8160, 4, 2, 32).window(4096),
            Sizes::new(5, 3, 2, 1, 512),
            Sizes::new(32, 32, 4, 2, 64).with_outliers(),
            Sizes::new(6, 70, 4, 2, 128).soft_cap(50.0).with_outliers(),
        ],
        CaseSet::Bench => &[
            Sizes::new(32, 2048, 24, 8, 128),
            Sizes::new(512, 0, 24, 8, 128),
            Sizes::new(512, 2048, 24, 8, 128),
            Sizes::new(2048, 0, 24, 8, 128),
            Sizes::new(2048, 0, 32, 8, 64),
        ],
    };
    let of = |(sizes, dtype): (Sizes, KvDtype)| {
        tile_choices(caps, sizes.shape.head_dim).map(move |slots| tile_case(sizes.clone(), slots, dtype))
    };
    let mixed = |(sizes, dtype)| mixed_case(caps, sizes, dtype);
    let batches: Vec<Sizes> = if set == CaseSet::Test { mixed_batches() } else { Vec::new() };
    dtypes(shapes).flat_map(of).chain(dtypes(&batches).map(mixed)).collect()
}

/// Single rows of five sequences, with 1 to 700 keys, among three, nine and forty rows of others.
fn mixed_batches() -> Vec<Sizes> {
    let spans = [(1, 0), (1, 699), (9, 20), (3, 60), (1, 95), (40, 70), (1, 31), (1, 300)];
    let sizes = |spans: &[(usize, usize)]| Sizes::batch(spans, [6, 2, 64]);
    // The second and third shapes have two data types.
    vec![sizes(&spans), sizes(&spans[3..]).window(40), sizes(&spans[..4]).soft_cap(20.0)]
}

/// A batch under the device's choices.
fn mixed_case(caps: &Caps, sizes: Sizes, dtype: KvDtype) -> Case {
    let many = sizes.device_spans().into_iter().map(|span| span.rows).find(|rows| *rows > super::DECODE_ROWS);
    let slots = default_slots(caps, &sizes.shape, many.expect("a batch with many rows of a sequence"));
    let variant = tile_variant(&sizes.shape, dtype, slots);
    sizes.case(dtype, variant, move |recorder, shape, Buffers { q, pool, rows, y }| {
        Attention { shape }.record(recorder, q, pool, rows, y);
    })
}

pub(super) fn tile_case(sizes: Sizes, slots: usize, dtype: KvDtype) -> Case {
    let variant = tile_variant(&sizes.shape, dtype, slots);
    sizes.case(dtype, variant, move |recorder, shape, buffers| {
        for span in buffers.rows.spans() {
            Tiles { shape, span: *span }.record_once(recorder, buffers, slots);
        }
    })
}

pub(super) fn decode_cases(caps: &Caps, set: CaseSet) -> Vec<Case> {
    let shapes: &[(Sizes, usize)] = match set {
        CaseSet::Test => &[
            (Sizes::new(1, 0, 9, 3, 64), 1),
            (Sizes::new(1, 127, 24, 8, 128), 1),
            (Sizes::new(1, 300, 9, 3, 64), 1),
            (Sizes::new(1, 300, 9, 3, 64), 3),
            (Sizes::new(1, 1000, 4, 1, 128), 4),
            (Sizes::new(3, 254, 14, 2, 64), 3),
            (Sizes::new(2, 10, 2, 2, 20), 1),
            (Sizes::new(1, 200, 16, 1, 32), 2),
            (Sizes::new(1, 40, 8, 2, 256), 1),
            (Sizes::new(1, 40, 3, 1, 96), 1),
            (Sizes::new(1, 300, 4, 2, 16).window(16), 1),
            (Sizes::new(3, 400, 8, 1, 64).window(200), 2),
            (Sizes::new(4, 126, 9, 3, 64).window(128), 2),
            (Sizes::new(2, 20, 2, 2, 20).window(1), 1),
            (Sizes::new(1, 40, 8, 4, 256).soft_cap(5.0), 1),
            (Sizes::new(1, 700, 16, 8, 256).soft_cap(50.0).window(512), 4),
            (Sizes::new(1, 300, 9, 3, 64).soft_cap(20.0), 3),
            (Sizes::new(1, 63, 32, 32, 96), 1),
            (Sizes::new(1, 255, 8, 8, 80), 2),
            (Sizes::new(4, 0, 2, 1, 512), 1),
            (Sizes::new(1, 8191, 4, 2, 32), 1),
            (Sizes::new(1, 8191, 4, 2, 32), 64),
            (Sizes::new(1, 8191, 4, 2, 32).window(4096), 32),
            (Sizes::new(1, 200, 4, 2, 64).with_outliers(), 1),
            (Sizes::new(2, 200, 4, 2, 64).with_outliers(), 2),
            (Sizes::new(1, 200, 4, 2, 64).soft_cap(50.0).with_outliers(), 2),
            (short_and_long([9, 3, 64]), 4),
            (short_and_long([9, 3, 64]).window(130), 2),
            (short_and_long([9, 3, 64]).soft_cap(20.0), 1),
        ],
        CaseSet::Bench => &[
            (Sizes::new(1, 127, 24, 8, 128), 1),
            (Sizes::new(1, 511, 24, 8, 128), 1),
            (Sizes::new(1, 511, 24, 8, 128), 4),
            (Sizes::new(1, 2047, 24, 8, 128), 16),
            (Sizes::new(1, 8191, 24, 8, 128), 32),
        ],
    };
    let all = dtypes(shapes);
    all.map(|((sizes, splits), dtype)| decode_case(caps, sizes, splits, dtype)).collect()
}

fn decode_case(caps: &Caps, sizes: Sizes, splits: usize, dtype: KvDtype) -> Case {
    choice_case(caps, sizes, DecodeChoice { teams: None, splits }, dtype)
}

pub(super) fn choice_case(caps: &Caps, sizes: Sizes, choice: DecodeChoice, dtype: KvDtype) -> Case {
    let variant = decode_variant(&sizes.shape, caps, dtype, choice);
    sizes.case(dtype, variant, move |recorder, shape, buffers| {
        FewRows::record(shape, buffers.rows.spans(), recorder, buffers, choice);
    })
}

/// A case for each choice for a row that sees `keys` keys, for timing.
pub fn choice_cases(caps: &Caps, shape: AttentionShape, keys: usize, dtype: KvDtype) -> Vec<(DecodeChoice, Case)> {
    let sizes = Sizes { rows: CaseRows::new(&[(1, keys - 1)]), shape, has_outliers: false };
    let all = choices(caps, &sizes.few_rows()).into_iter();
    all.map(|choice| (choice, choice_case(caps, sizes.clone(), choice, dtype))).collect()
}

/// Few rows of sequences of different lengths. Ranges of the short ones are empty.
fn short_and_long(shape: [usize; 3]) -> Sizes {
    Sizes::batch(&[(1, 0), (1, 699), (3, 126), (1, 31), (2, 300), (1, 95)], shape)
}

pub(super) fn teams_cases(caps: &Caps, set: CaseSet) -> Vec<Case> {
    let teams = |workgroup, heads, keys| Teams { workgroup, heads, keys };
    let shapes: &[(Sizes, Teams, usize)] = match set {
        CaseSet::Test => &[
            (Sizes::new(1, 0, 9, 3, 64), teams(128, 3, 4), 1),
            (Sizes::new(1, 127, 24, 8, 128), teams(256, 3, 4), 1),
            (Sizes::new(1, 300, 9, 3, 64), teams(128, 1, 2), 3),
            (Sizes::new(1, 1000, 4, 1, 128), teams(128, 4, 8), 4),
            (Sizes::new(3, 254, 14, 2, 64), teams(64, 1, 4), 3),
            (Sizes::new(1, 200, 16, 1, 32), teams(128, 4, 4), 2),
            (Sizes::new(1, 40, 8, 2, 256), teams(64, 4, 2), 1),
            (Sizes::new(1, 300, 4, 2, 16).window(16), teams(256, 2, 4), 1),
            (Sizes::new(3, 400, 8, 1, 64).window(200), teams(128, 2, 4), 2),
            (Sizes::new(2, 20, 2, 2, 32).window(1), teams(64, 1, 4), 1),
            (Sizes::new(1, 700, 16, 8, 256).soft_cap(50.0).window(512), teams(128, 2, 4), 4),
            (Sizes::new(1, 300, 9, 3, 64).soft_cap(20.0), teams(256, 3, 4), 3),
            (Sizes::new(1, 8191, 4, 2, 32), teams(256, 2, 4), 64),
            (Sizes::new(1, 200, 4, 2, 64).with_outliers(), teams(128, 2, 4), 1),
            (Sizes::new(2, 200, 4, 2, 64).with_outliers(), teams(256, 2, 4), 2),
            (Sizes::new(4, 0, 2, 1, 64), teams(128, 2, 4), 1),
            (short_and_long([9, 3, 64]), teams(128, 1, 2), 6),
            (short_and_long([8, 1, 64]).window(200), teams(128, 2, 4), 2),
            (short_and_long([9, 3, 64]).soft_cap(20.0), teams(256, 3, 4), 3),
            (short_and_long([9, 3, 64]), teams(128, 3, 4), 1),
        ],
        CaseSet::Bench => &[
            (Sizes::new(1, 127, 24, 8, 128), teams(256, 3, 4), 1),
            (Sizes::new(1, 2047, 24, 8, 128), teams(256, 3, 4), 16),
        ],
    };
    let is_supported = |(sizes, teams, _): &&(Sizes, Teams, usize)| {
        teams.are_supported(caps, sizes.shape.group(), sizes.shape.head_dim)
    };
    let supported: Vec<_> = shapes.iter().filter(is_supported).cloned().collect();
    let case =
        |((sizes, teams, splits), dtype)| choice_case(caps, sizes, DecodeChoice { teams: Some(teams), splits }, dtype);
    dtypes(&supported).map(case).collect()
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
                // A split without keys. Early rows have them.
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
