//! Cases of the chain: what single dispatches compute one after the other.

use half::f16;
use model_format::decoder_config::Activation;

use super::{ChainChoice, ChainShape, FORMAT, GemvChain, Links, Turned, chains};
use crate::{
    Case, CaseSet, KvCache, KvDtype, Variant,
    cases::{self, Random, random_matrix},
    gemv::{self, GemvAdd, GemvRope, GemvScaled, heads_of, reference},
    glu::glu,
    gpu::{Buffer, Caps, Recorder},
    kernel::{CaseBuffer, Purpose},
    kv::padded,
    matrix::Slice,
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

    /// Words of every buffer.
    fn lens(&self, dtype: KvDtype) -> Vec<usize> {
        let (hidden, inner) = (self.hidden(), self.inner());
        let last = self.rows.len() - 1;
        let matrix = |i: usize| gemv::matrix_lens(FORMAT, self.rows[i.min(last)], self.cols[i.min(last)]);
        let mut lens = [0, 1, 2, 3].map(matrix).concat();
        lens.extend([self.cols[0], hidden, hidden, hidden, hidden, hidden, inner, hidden, hidden, GemvChain::ARRIVED]);
        if let Some([heads, kv_heads, head_dim]) = self.heads() {
            let cache = kv_heads * CAPACITY * dtype.row_words(head_dim);
            lens.extend([CAPACITY * head_dim, heads * head_dim, cache, cache]);
        }
        lens
    }
}

/// Words of the buffers of a case.
pub(super) fn lens(_: &Caps, shape: &ChainShape) -> Vec<usize> {
    Sizes::of(shape).lens(KvDtype::F16)
}

/// A chain at its size.
pub(super) fn case(caps: &Caps, shape: &ChainShape, choice: Option<ChainChoice>, dtype: KvDtype) -> Case {
    sized_case(caps, Sizes::of(shape), choice, dtype)
}

/// One with few rows, in the same variant.
pub(super) fn small_case(caps: &Caps, shape: &ChainShape, choice: Option<ChainChoice>, dtype: KvDtype) -> Case {
    let Sizes { rows, cols } = Sizes::of(shape);
    let rows = rows.iter().zip(FEW_ROWS).map(|(_, few)| few).collect();
    sized_case(caps, Sizes { rows, cols }, choice, dtype)
}

pub(super) fn cases(caps: &Caps, set: CaseSet, turned: bool) -> Vec<Case> {
    let shape = |hidden, attended, inner, qkv| ChainShape { hidden, attended, inner, qkv: if turned { qkv } else { 0 } };
    let shapes = match set {
        CaseSet::Test => vec![shape(576, 576, 1536, 960), shape(2048, 2048, 8192, 3072), shape(128, 64, 320, 192)],
        CaseSet::Bench => vec![shape(3072, 3072, 8192, 5120), shape(2048, 2048, 8192, 3072)],
    };
    let mut all = Vec::new();
    for (i, shape) in shapes.iter().enumerate() {
        for choice in chains(caps, shape) {
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
    let variant = choice.map_or(Variant::new(), |choice| {
        let variant = choice.variant(caps, &sizes.cols);
        if heads.is_some() { dtype.flag(variant) } else { variant }
    });
    let words = |sizes: &[usize]| sizes.iter().map(usize::to_string).collect::<Vec<_>>().join("/");
    let groups = choice.map_or("apart".into(), |choice| format!("{} groups", choice.groups));
    let (made, recorded, expected) = (sizes.clone(), sizes.clone(), sizes.clone());
    Case {
        label: format!("{} x {}, {groups}", words(&sizes.rows), words(&sizes.cols)),
        variant,
        flops: 2 * weights as u64,
        bytes,
        // What is behind a sum with an error has it again; and a cache is rounded.
        tolerance: 1e-6,
        buffers: Box::new(move || buffers(&made, &lens, dtype)),
        record: Box::new(move |recorder, b| record(&recorded, choice, dtype, recorder, b)),
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
    let sum = CaseBuffer::in_out(&random.values(lens[11]));
    // What small stages leave as it was is what the next one takes in.
    let mut link = |i: usize| CaseBuffer::input(&random.values(lens[i]));
    let (normed, activated, y) = (link(12), link(14), link(15));
    let y = if last == 3 { y } else { CaseBuffer { purpose: Purpose::F32, ..y } };
    let scratch = CaseBuffer::scratch;
    all.extend([sum, normed, scratch(lens[13]), activated, y, scratch(lens[16]), scratch(lens[17])]);
    if let Some([_, _, head_dim]) = sizes.heads() {
        let cache = |len| CaseBuffer { words: vec![0; len], purpose: Purpose::Kv(dtype, head_dim) };
        all.extend([
            CaseBuffer::input(&random.values(lens[18])),
            CaseBuffer::output(lens[19]),
            cache(lens[20]),
            cache(lens[21]),
        ]);
    }
    all
}

fn record(sizes: &Sizes, choice: Option<ChainChoice>, dtype: KvDtype, recorder: &mut Recorder, b: &[Buffer<u32>]) {
    let last = sizes.rows.len() - 1;
    let slices: Vec<Slice> = [0, 1, 2, 3]
        .map(|i| {
            let at = i.min(last);
            cases::slice(FORMAT, sizes.rows[at], sizes.cols[at], &b[2 * i], &b[2 * i + 1])
        })
        .into();
    let of = |i: usize| b[i].cast::<f32>();
    let [x, norm0, norm2, sum] = [8, 9, 10, 11].map(of);
    let links = Links { normed: of(12), normed_squares: of(13), activated: of(14), y: of(15), y_squares: of(16) };
    let turned = sizes.heads().map(|[heads, kv_heads, head_dim]| {
        let cache =
            KvCache { k: b[20].clone(), v: b[21].clone(), kv_heads, capacity: CAPACITY, head_dim, dtype };
        (heads, of(18), of(19), cache)
    });
    let turned = turned.as_ref().map(|(heads, rope, q, cache)| Turned {
        qkv: &slices[3],
        rope,
        heads: *heads,
        position: POSITION,
        q,
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
    match choice {
        Some(choice) => chain.record_links(recorder, choice, [&x, &sum], &b[17], &links, turned.as_ref()),
        None => apart(recorder, &chain, [&x, &sum], &links, turned.as_ref()),
    }
}

/// The same, one dispatch for each product.
fn apart(
    recorder: &mut Recorder,
    chain: &GemvChain<'_>,
    [x, sum]: [&Buffer<f32>; 2],
    links: &Links,
    turned: Option<&Turned<'_>>,
) {
    let add = |recorder: &mut Recorder, w, x, norm, y, squares| {
        let add = GemvAdd::of(recorder.gpu(), w);
        add.record(recorder, w, x, norm, sum, y, squares);
        add.parts(recorder.gpu().caps(), w.rows)
    };
    let parts = add(recorder, chain.out, x, chain.out_norm, &links.normed, &links.normed_squares);
    let gate_up = GemvScaled { parts, eps: chain.eps, swiglu: true };
    gate_up.record(recorder, chain.gate_up, &links.normed, &links.normed_squares, &links.activated);
    let parts = add(recorder, chain.down, &links.activated, chain.down_norm, &links.y, &links.y_squares);
    if let Some(Turned { qkv, rope, heads, position, q, cache }) = turned {
        let turn = GemvRope { parts, eps: chain.eps, heads: *heads, position: *position };
        turn.record(recorder, qkv, &links.y, &links.y_squares, rope, q, cache);
    }
}

fn reference_of(sizes: &Sizes, dtype: KvDtype, b: &[CaseBuffer]) -> Vec<Vec<f32>> {
    let w = |i: usize| cases::values(FORMAT, sizes.rows[i], sizes.cols[i], &b[2 * i].words, &b[2 * i + 1].words);
    let turned = sizes.heads();
    let mut sum = b[11].values().to_vec();
    let (mut normed, mut activated) = (in_order(b[12].values()), in_order(b[14].values()));
    let mut y = if turned.is_some() { in_order(b[15].values()) } else { b[15].values().to_vec() };
    // The sum's rows, of which the sum of squares is known.
    let add = |i: usize, x: &[f32], norm: &[f32], sum: &mut [f32], y: &mut [f32]| -> f32 {
        let rows = sizes.rows[i];
        reference::gemv_add(&w(i), &x[..sizes.cols[i]], &norm[..rows], &mut sum[..rows], &mut y[..rows]);
        sum[..rows].iter().map(|v| v * v).sum()
    };
    let square = add(0, b[8].values(), b[9].values(), &mut sum, &mut normed);
    let mut gate_up = vec![0.0; sizes.rows[1]];
    reference::gemv_scaled(&w(1), &normed[..sizes.cols[1]], &[square], EPS, &mut gate_up);
    let inner = sizes.rows[1] / 2;
    glu(&gate_up, Activation::Silu, inner, &mut activated[..inner]);
    let square = add(2, &activated, b[10].values(), &mut sum, &mut y);
    let Some([heads, kv_heads, head_dim]) = turned else { return vec![sum, y] };
    let mut qkv = vec![0.0; sizes.rows[3]];
    reference::gemv_scaled(&w(3), &y[..sizes.cols[3]], &[square], EPS, &mut qkv);
    let len = kv_heads * CAPACITY * padded(head_dim);
    let (mut q, mut k, mut v) = (vec![0.0; heads * head_dim], vec![0.0; len], vec![0.0; len]);
    let shape =
        RopeShape { heads, kv_heads, head_dim, rotary_dim: head_dim, past_len: POSITION, capacity: CAPACITY };
    rope(shape, &qkv, b[18].values(), &mut q, &mut k, &mut v);
    if dtype == KvDtype::F16 {
        let largest = f16::MAX.to_f32();
        k.iter_mut().chain(&mut v).for_each(|value| *value = value.clamp(-largest, largest));
    }
    vec![sum, q, k, v]
}

/// What lies in the order in which lanes read it, in its own.
fn in_order(values: &[f32]) -> Vec<f32> {
    let blocks = values.len() / 16;
    (0..values.len()).map(|n| values[n % 16 * blocks + n / 16]).collect()
}
