//! Cases of the chain: what single dispatches compute one after the other.

use std::{collections::HashMap, sync::Mutex};

use half::f16;
use model_format::decoder_config::Activation;

use super::{ChainChoice, ChainShape, End, FORMAT, GemvChain, MISSING, Turned, chains};
use crate::{
    Case, CaseSet, KvCache, KvDtype,
    cases::{self, Random, random_matrix},
    gemv::{self, GemvAdd, GemvRope, GemvScaled, heads_of, reference},
    glu::glu,
    gpu::{Buffer, Caps, Recorder, lock},
    kernel::{CaseBuffer, Purpose},
    kv::padded,
    rope::{RopeShape, rope},
};

/// What cases are made of: rows and inputs of each stage. A small one has fewer rows than the next stage has inputs, and the
/// others as they come.
#[derive(Clone, Debug)]
struct Sizes {
    rows: Vec<usize>,
    cols: Vec<usize>,
}

const EPS: f32 = 1e-5;
const POSITION: usize = 5;
const CAPACITY: usize = POSITION + 3;
/// Rows of small cases, of each stage.
const FEW_ROWS: [usize; 4] = [44, 40, 28, 48];

impl Sizes {
    fn of(shape: &ChainShape) -> Sizes {
        let (cols, rows) = shape.stages().into_iter().map(|(rows, cols)| (cols, rows)).unzip();
        Sizes { rows, cols }
    }

    fn hidden(&self) -> usize {
        self.cols[1].max(self.rows[0]).max(self.rows[2])
    }

    fn inner(&self) -> usize {
        self.cols[2].max(self.rows[1] / 2)
    }

    /// Query heads, key heads and their width, where there are such.
    fn heads(&self) -> Option<[usize; 3]> {
        self.rows.get(3).map(|rows| heads_of(*rows))
    }

    /// Words of every buffer: those of a chain, and for single dispatches what is between them.
    fn lens(&self, dtype: KvDtype) -> Vec<usize> {
        let (hidden, inner) = (self.hidden(), self.inner());
        let last = self.rows.len() - 1;
        let matrix = |i: usize| gemv::matrix_lens(FORMAT, self.rows[i.min(last)], self.cols[i.min(last)]);
        let mut lens = [0, 1, 2, 3].map(matrix).concat();
        let links = 2 * hidden + inner;
        lens.extend([self.cols[0], hidden, hidden, hidden, links, links]);
        match self.heads() {
            Some([heads, kv_heads, head_dim]) => {
                let cache = kv_heads * CAPACITY * dtype.row_words(head_dim);
                lens.extend([CAPACITY * head_dim, heads * head_dim, cache, cache]);
            }
            None => lens.extend([hidden, hidden]),
        }
        lens
    }
}

/// Words of the buffers of a case.
pub(super) fn lens(shape: &ChainShape) -> Vec<usize> {
    Sizes::of(shape).lens(KvDtype::F16)
}

/// A chain at its size.
pub(super) fn case(caps: &Caps, shape: &ChainShape, choice: Option<ChainChoice>, dtype: KvDtype) -> Case {
    sized_case(caps, Sizes::of(shape), choice, dtype)
}

/// One with few rows, in the same variant.
pub(super) fn small_case(caps: &Caps, shape: &ChainShape, choice: Option<ChainChoice>, dtype: KvDtype) -> Case {
    if choice.is_none() {
        let qkv = if shape.qkv > 0 { 96 } else { 0 };
        return case(caps, &ChainShape { hidden: 64, attended: 64, inner: 64, qkv }, None, dtype);
    }
    let Sizes { cols, .. } = Sizes::of(shape);
    let rows = FEW_ROWS[..cols.len()].to_vec();
    sized_case(caps, Sizes { rows, cols }, choice, dtype)
}

pub(super) fn cases(caps: &Caps, set: CaseSet, turned: bool) -> Vec<Case> {
    let shape =
        |hidden, attended, inner, qkv| ChainShape { hidden, attended, inner, qkv: if turned { qkv } else { 0 } };
    let shapes = match set {
        CaseSet::Test => vec![shape(576, 576, 1536, 960), shape(2048, 2048, 8192, 3072), shape(128, 64, 320, 192)],
        CaseSet::Bench => vec![shape(3072, 3072, 8192, 5120), shape(2048, 2048, 8192, 3072)],
    };
    let mut all = Vec::new();
    for (i, shape) in shapes.iter().enumerate() {
        // Of the tests, some of each width of workgroup and number of rows.
        let step = if set == CaseSet::Test { 6 } else { 1 };
        for choice in chains(caps, shape).into_iter().step_by(step) {
            match set {
                CaseSet::Bench => all.push(case(caps, shape, Some(choice), KvDtype::F16)),
                CaseSet::Test => {
                    let dtype = if i == 0 { KvDtype::F32 } else { KvDtype::F16 };
                    // So few workgroups that each takes rows several times, some of them beyond the last.
                    for choice in [choice, ChainChoice { groups: 3, ..choice }] {
                        all.push(small_case(caps, shape, Some(choice), dtype));
                    }
                }
            }
        }
    }
    all
}

fn sized_case(caps: &Caps, sizes: Sizes, choice: Option<ChainChoice>, dtype: KvDtype) -> Case {
    let heads = sizes.heads();
    let lens = sizes.lens(dtype);
    let weights: usize = sizes.rows.iter().zip(&sizes.cols).map(|(rows, cols)| rows * cols).sum();
    let bytes: u64 = sizes.rows.iter().zip(&sizes.cols).map(|(rows, cols)| FORMAT.matrix_bytes(*rows, *cols)).sum();
    let variant = match choice {
        Some(choice) if heads.is_some() => dtype.flag(choice.variant(caps, &sizes.cols)),
        Some(choice) => choice.variant(caps, &sizes.cols),
        // Of the first of several.
        None => gemv::usual_variant(caps, sizes.rows[0], sizes.cols[0]),
    };
    let words = |sizes: &[usize]| sizes.iter().map(usize::to_string).collect::<Vec<_>>().join("/");
    let groups = choice.map_or("apart".into(), |choice| format!("{} groups", choice.groups));
    // Sets of links take turns, or a second run would find what the first one left. A small one finds it, for no stage leaves all.
    let is_whole = sizes.rows[0] == sizes.cols[1];
    let turns = Mutex::new(HashMap::new());
    let (made, recorded, expected) = (sizes.clone(), sizes.clone(), sizes.clone());
    Case {
        label: format!("{} x {}, {groups}", words(&sizes.rows), words(&sizes.cols)),
        variant,
        flops: 2 * weights as u64,
        bytes,
        // What is behind a sum with an error has it again; and a cache is rounded.
        tolerance: 1e-6,
        buffers: Box::new(move || buffers(&made, &lens, dtype)),
        record: Box::new(move |recorder, b| {
            let mut turns = lock(&turns);
            let turn = turns.entry(b[12].id()).or_insert(false);
            *turn ^= is_whole;
            record(&recorded, choice, dtype, recorder, b, *turn);
        }),
        reference: Box::new(move |b| reference_of(&expected, dtype, b)),
    }
}

fn buffers(sizes: &Sizes, lens: &[usize], dtype: KvDtype) -> Vec<CaseBuffer> {
    let mut random = Random::new(lens[8] as u64);
    let last = sizes.rows.len() - 1;
    let mut all: Vec<CaseBuffer> = Vec::new();
    for i in [0, 1, 2, 3].map(|i: usize| i.min(last)) {
        all.extend(random_matrix(FORMAT, sizes.rows[i], sizes.cols[i], i as u64 + 1));
    }
    all.extend([8, 9, 10].map(|i| CaseBuffer::input(&random.values(lens[i]))));
    all.push(CaseBuffer::in_out(&random.values(lens[11])));
    // What no row of a small stage leaves is there already.
    let mut links: Vec<u32> = random.values(lens[12]).into_iter().map(f32::to_bits).collect();
    let begins = [0, sizes.hidden(), sizes.hidden() + sizes.inner()];
    for (i, (begin, left)) in begins.into_iter().zip([sizes.rows[0], sizes.rows[1] / 2, sizes.rows[2]]).enumerate() {
        let cols = sizes.cols.get(i + 1).copied().unwrap_or(sizes.hidden());
        (0..left).for_each(|n| links[begin + place(n, cols)] = MISSING);
    }
    all.extend([CaseBuffer::words(links.clone()), CaseBuffer::words(links)]);
    match sizes.heads() {
        Some([_, _, head_dim]) => {
            let cache = |len| CaseBuffer { words: vec![0; len], purpose: Purpose::Kv(dtype, head_dim) };
            all.extend([
                CaseBuffer::input(&random.values(lens[14])),
                CaseBuffer::output(lens[15]),
                cache(lens[16]),
                cache(lens[17]),
            ]);
        }
        None => all.extend([CaseBuffer::in_out(&random.values(lens[14])), CaseBuffer::scratch(lens[15])]),
    }
    all
}

fn record(
    sizes: &Sizes,
    choice: Option<ChainChoice>,
    dtype: KvDtype,
    recorder: &mut Recorder,
    b: &[Buffer<u32>],
    turn: bool,
) {
    let last = sizes.rows.len() - 1;
    let slices = [0, 1, 2, 3].map(|i: usize| {
        let at = i.min(last);
        cases::slice(FORMAT, sizes.rows[at], sizes.cols[at], &b[2 * i], &b[2 * i + 1])
    });
    let of = |i: usize| b[i].cast::<f32>();
    let [x, norm0, norm2, sum, first, second] = [8, 9, 10, 11, 14, 15].map(of);
    let cache = sizes.heads().map(|[heads, kv_heads, head_dim]| {
        let cache = KvCache { k: b[16].clone(), v: b[17].clone(), kv_heads, capacity: CAPACITY, head_dim, dtype };
        (heads, cache)
    });
    let turned = cache.as_ref().map(|(heads, cache)| Turned {
        qkv: &slices[3],
        rope: &first,
        heads: *heads,
        position: POSITION,
        q: &second,
        cache,
    });
    let chain = GemvChain {
        out: &slices[0],
        out_norm: &norm0,
        gate_up: &slices[1],
        down: &slices[2],
        down_norm: &norm2,
        eps: EPS,
    };
    let end = match &turned {
        Some(turned) => End::Turned(turned),
        None => End::Normed { y: &first, squares: &second },
    };
    match choice {
        Some(choice) => {
            let sets = if turn { [&b[13], &b[12]] } else { [&b[12], &b[13]] };
            chain.record_to(recorder, choice, [&x, &sum], sets, end);
        }
        None => apart(recorder, &chain, [&x, &sum], end),
    }
}

/// The same at full size, one dispatch for each product.
fn apart(recorder: &mut Recorder, chain: &GemvChain<'_>, [x, sum]: [&Buffer<f32>; 2], end: End<'_>) {
    let (hidden, inner) = (chain.down.rows, chain.down.cols);
    let [normed, activated, left] = [hidden, inner, hidden].map(|len| recorder.temporary(len));
    let squares = recorder.temporary(hidden);
    let add = |recorder: &mut Recorder, w, x, norm, y, squares| {
        let add = GemvAdd::of(recorder.gpu(), w);
        add.record(recorder, w, x, norm, sum, y, squares);
        add.parts(recorder.gpu().caps(), w.rows)
    };
    let parts = add(recorder, chain.out, x, chain.out_norm, &normed, &squares);
    GemvScaled { parts, eps: chain.eps, swiglu: true }.record(recorder, chain.gate_up, &normed, &squares, &activated);
    match end {
        End::Normed { y, squares } => {
            add(recorder, chain.down, &activated, chain.down_norm, y, squares);
        }
        End::Turned(Turned { qkv, rope, heads, position, q, cache }) => {
            let parts = add(recorder, chain.down, &activated, chain.down_norm, &left, &squares);
            let turn = GemvRope { parts, eps: chain.eps, heads: *heads, position: *position };
            turn.record(recorder, qkv, &left, &squares, rope, q, cache);
        }
    }
}

fn reference_of(sizes: &Sizes, dtype: KvDtype, b: &[CaseBuffer]) -> Vec<Vec<f32>> {
    let w = |i: usize| cases::values(FORMAT, sizes.rows[i], sizes.cols[i], &b[2 * i].words, &b[2 * i + 1].words);
    let (hidden, inner) = (sizes.hidden(), sizes.inner());
    let product = |i: usize, x: &[f32]| {
        let mut y = vec![0.0; sizes.rows[i]];
        reference::gemv(&w(i), x, sizes.cols[i], &mut y);
        y
    };
    // Of stage i, what rows of the stage before do not leave.
    let link = |i: usize, begin: usize| -> Vec<f32> {
        let cols = sizes.cols[i];
        (0..cols).map(|n| b[12].values()[begin + place(n, cols)]).collect()
    };
    let normed = |i: usize, u: &[f32], norm: &[f32]| {
        let square: f32 = u.iter().map(|v| v * v).sum();
        let x: Vec<f32> = u.iter().zip(norm).map(|(u, norm)| u * norm).collect();
        let mut y = vec![0.0; sizes.rows[i]];
        reference::gemv_scaled(&w(i), &x, &[square], EPS, &mut y);
        y
    };
    let mut sum = b[11].values().to_vec();
    let mut u = link(1, 0);
    let delta = product(0, b[8].values());
    (0..sizes.rows[0]).for_each(|n| u[n] = sum[n] + delta[n]);
    let gate_up = normed(1, &u, b[9].values());
    let mut v = link(2, hidden);
    let half = sizes.rows[1] / 2;
    glu(&gate_up, Activation::Silu, half, &mut v[..half]);
    let delta = product(2, &v);
    (0..sizes.rows[2]).for_each(|n| sum[n] = u[n] + delta[n]);
    let Some([heads, kv_heads, head_dim]) = sizes.heads() else {
        let mut y = b[14].values().to_vec();
        (0..sizes.rows[2]).for_each(|n| y[n] = sum[n] * b[10].values()[n]);
        return vec![sum, y];
    };
    let mut u = link(3, hidden + inner);
    u[..sizes.rows[2]].copy_from_slice(&sum[..sizes.rows[2]]);
    let qkv = normed(3, &u, b[10].values());
    let len = kv_heads * CAPACITY * padded(head_dim);
    let (mut q, mut k, mut v) = (vec![0.0; heads * head_dim], vec![0.0; len], vec![0.0; len]);
    let shape = RopeShape { heads, kv_heads, head_dim, rotary_dim: head_dim, past_len: POSITION, capacity: CAPACITY };
    rope(shape, &qkv, b[14].values(), &mut q, &mut k, &mut v);
    if dtype == KvDtype::F16 {
        let largest = f16::MAX.to_f32();
        k.iter_mut().chain(&mut v).for_each(|value| *value = value.clamp(-largest, largest));
    }
    vec![sum, q, k, v]
}

/// Where value n of so many lies among links.
fn place(n: usize, cols: usize) -> usize {
    n % 16 * (cols / 16) + n / 16
}
