//! Cases of the chain. The reference is plain loops over the operations of separate dispatches.

use std::{collections::HashMap, sync::Mutex};

use half::f16;
use model_format::decoder_config::Activation;

use super::{
    AttentionStages, ChainChoice, ChainShape, End, EndShape, FORMAT, GemvChain, GemvStart, Heads, KERNEL, MOST_SPLITS,
    START_KERNEL,
    choice::chains,
    links::{self, LinkSets},
    words::{PENDING, VALUES},
};
use crate::{
    Case, CaseSet, Kernel, KvDtype,
    attention::{Attention, AttentionShape, attention},
    cases::{self, CaseRows, Random, random_matrix},
    gemv::{self, Gemv, GemvAdd, GemvRope, GemvScaled, reference},
    glu::glu,
    gpu::{Buffer, Caps, Recorder, lock},
    kernel::{CaseBuffer, Purpose},
    kv::token_bytes,
    rms_norm::RmsNorm,
    rope::{Rope, RopeShape, rope},
};

/// Sizes of a case: rows and inputs of each product, and attention. A small case has fewer rows than the next product has inputs. Its links
/// hold the other inputs from the beginning.
#[derive(Clone, Debug)]
struct Sizes {
    rows: Vec<usize>,
    cols: Vec<usize>,
    shape: ChainShape,
    position: usize,
    window: Option<usize>,
}

const EPS: f32 = 1e-5;
/// Rows of products 0 to 2 in small cases.
const FEW_ROWS: [usize; 3] = [44, 40, 28];
/// Earlier tokens: few, and a medium-length conversation.
const FEW_BEFORE: usize = 100;
const MANY_BEFORE: usize = 700;

/// Indexes of a case's buffers. The matrices come first.
struct Places {
    x: usize,
    links: usize,
    /// First buffer after both sets of links: of the attention matrix, if it is not the first.
    rest: usize,
}

impl Sizes {
    fn of(shape: &ChainShape, position: usize) -> Sizes {
        let (rows, cols) = shape.products().into_iter().unzip();
        Sizes { rows, cols, shape: *shape, position, window: None }
    }

    /// Few rows with the same variant.
    fn small(shape: &ChainShape, position: usize) -> Sizes {
        let Sizes { cols, .. } = Sizes::of(shape, position);
        let heads = shape.heads.map(|heads| Heads { heads: heads.group(), kv_heads: 1, ..heads });
        let few = shape.end.map(|_| FEW_ROWS).into_iter().flatten();
        let rows = few.chain(heads.map(|heads| heads.rows())).collect();
        Sizes { rows, cols, shape: ChainShape { heads, ..*shape }, position, window: None }
    }

    fn places(&self) -> Places {
        match self.shape.end {
            Some(_) => Places { x: 6, links: 10, rest: 12 },
            None => Places { x: 2, links: 4, rest: 6 },
        }
    }

    /// The token.
    fn row(&self) -> CaseRows {
        CaseRows::new(&[(1, self.position)])
    }

    /// Words of links.
    fn links(&self) -> usize {
        links::words(self.shape.link_values(MOST_SPLITS))
    }

    /// True if each stage publishes all inputs of the next one.
    fn is_whole(&self) -> bool {
        self.shape.end.is_none() || self.rows[0] == self.cols[1]
    }

    /// A dispatch resets the words of links from TICKET up to this one. A small case keeps its values: its stages do not publish all of them,
    /// and a repeated dispatch would wait in vain.
    fn reset_words(&self) -> usize {
        if self.is_whole() { self.links() } else { VALUES }
    }

    fn matrix(&self, i: usize) -> [usize; 2] {
        gemv::matrix_lens(FORMAT, self.rows[i], self.cols[i])
    }

    /// Words of every buffer, in the order of the kernel's bindings.
    fn lens(&self, dtype: KvDtype) -> Vec<usize> {
        let ChainShape { hidden, end, heads } = self.shape;
        let mut lens = Vec::new();
        match end {
            Some(end) => {
                lens.extend((0..3).flat_map(|i| self.matrix(i)));
                lens.extend([end.attended, hidden, hidden, hidden]);
            }
            None => {
                lens.extend(self.matrix(0));
                lens.extend([hidden, hidden]);
            }
        }
        lens.extend([self.links(), self.links()]);
        match heads {
            Some(Heads { heads, kv_heads, head_dim }) => {
                lens.extend(end.map(|_| self.matrix(3)).into_iter().flatten());
                let row = self.row();
                let pool = row.pool_rows(kv_heads) * dtype.row_words(head_dim);
                lens.extend([(self.position + 1) * head_dim, heads * head_dim, pool, row.buffer().words.len()]);
            }
            None => lens.extend([hidden, hidden]),
        }
        lens
    }

    /// Words of the pool: random values, and large ones where no key is, which would show in any sum.
    fn pool(&self, Heads { kv_heads, head_dim, .. }: Heads, dtype: KvDtype, random: &mut Random) -> Vec<u32> {
        let large = if dtype == KvDtype::F16 { 0x63d0_63d0 } else { 1000f32.to_bits() };
        let absent = vec![large; dtype.row_words(head_dim)];
        self.row().pool_words([kv_heads, head_dim], dtype, |span| span.past_len, &absent, random)
    }

    /// Attention, with a scale for a softmax that is neither flat nor a single key: queries and the token's own key are about ten times as
    /// large here as in models.
    fn attention_shape(&self) -> AttentionShape {
        let Heads { heads, kv_heads, head_dim } = self.shape.heads.expect("a chain with attention");
        let scale = 0.2 / head_dim as f32;
        AttentionShape { heads, kv_heads, head_dim, rotary_dim: head_dim, scale, soft_cap: None, window: self.window }
    }
}

/// Indexes of the buffers of a case's matrices.
pub(super) fn matrix_buffers(shape: &ChainShape) -> Vec<usize> {
    let Places { x, rest, .. } = Sizes::of(shape, MANY_BEFORE).places();
    let attention = (shape.end.is_some() && shape.heads.is_some()).then_some([rest, rest + 1]);
    (0..x).chain(attention.into_iter().flatten()).collect()
}

/// Words of the buffers of a case.
pub(super) fn lens(shape: &ChainShape) -> Vec<usize> {
    Sizes::of(shape, MANY_BEFORE).lens(KvDtype::F16)
}

/// A case at full size in a medium-length conversation.
pub(super) fn case(caps: &Caps, shape: &ChainShape, choice: Option<ChainChoice>) -> Case {
    case_after(caps, shape, MANY_BEFORE, choice)
}

/// A case at full size after `position` tokens.
pub(super) fn case_after(caps: &Caps, shape: &ChainShape, position: usize, choice: Option<ChainChoice>) -> Case {
    sized_case(caps, Sizes::of(shape, position), choice, KvDtype::F16)
}

/// Small cases in the variants that a model runs.
pub(super) fn checks(caps: &Caps, shape: &ChainShape, choice: Option<ChainChoice>) -> Vec<Case> {
    if choice.is_none() {
        let heads = shape.heads.map(|_| Heads { heads: 4, kv_heads: 1, head_dim: 16 });
        let end = shape.end.map(|_| EndShape { attended: 64, inner: 64 });
        return vec![case(caps, &ChainShape { hidden: 64, end, heads }, None)];
    }
    let positions = if shape.heads.is_some() { &[FEW_BEFORE, MANY_BEFORE][..] } else { &[0] };
    let small = |position: &usize| sized_case(caps, Sizes::small(shape, *position), choice, KvDtype::F16);
    positions.iter().map(small).collect()
}

pub(super) fn cases(caps: &Caps, set: CaseSet, kernel: &Kernel) -> Vec<Case> {
    let shape = |hidden, inner, heads, kv_heads, head_dim| {
        let end = EndShape { attended: heads * head_dim, inner };
        ChainShape {
            hidden,
            end: (kernel.name != START_KERNEL.name).then_some(end),
            heads: (kernel.name != KERNEL.name).then_some(Heads { heads, kv_heads, head_dim }),
        }
    };
    let mut shapes = vec![shape(3072, 8192, 24, 8, 128), shape(2048, 8192, 32, 8, 64)];
    if set == CaseSet::Test {
        shapes.extend([shape(576, 1536, 9, 3, 64), shape(128, 320, 8, 2, 24)]);
    }
    let mut all = Vec::new();
    for (i, shape) in shapes.iter().enumerate() {
        // Of the tests, some of each width of workgroup and number of rows.
        let step = if set == CaseSet::Test { 6 } else { 1 };
        for choice in chains(caps, shape).into_iter().step_by(step) {
            if set == CaseSet::Bench {
                all.push(case(caps, shape, Some(choice)));
                continue;
            }
            let dtype = if i == 2 { KvDtype::F32 } else { KvDtype::F16 };
            // So few workgroups that each has several tiles, some beyond the last row.
            let few = ChainChoice { groups: 3, ..choice };
            // A first token, few keys, ranges of keys.
            let positions = if shape.heads.is_some() {
                &[(0, few), (FEW_BEFORE, choice), (MANY_BEFORE, few)][..]
            } else {
                &[(0, few)]
            };
            for (position, choice) in positions {
                all.push(sized_case(caps, Sizes::small(shape, *position), Some(*choice), dtype));
            }
            if shape.heads.is_some() {
                let sizes = Sizes { window: Some(300), ..Sizes::small(shape, MANY_BEFORE) };
                all.push(sized_case(caps, sizes, Some(choice), dtype));
            }
        }
    }
    all
}

fn sized_case(caps: &Caps, sizes: Sizes, choice: Option<ChainChoice>, dtype: KvDtype) -> Case {
    let heads = sizes.shape.heads;
    let weights: usize = sizes.rows.iter().zip(&sizes.cols).map(|(rows, cols)| rows * cols).sum();
    let matrices: u64 = sizes.rows.iter().zip(&sizes.cols).map(|(rows, cols)| FORMAT.matrix_bytes(*rows, *cols)).sum();
    let keys = sizes.position.min(sizes.window.unwrap_or(usize::MAX) - 1);
    let stored = heads.map_or(0, |heads| token_bytes(heads.kv_heads, heads.head_dim, dtype) * (keys + 1) as u64);
    let variant = match choice {
        Some(choice) => choice.variant(caps, &sizes.shape, keys, dtype),
        // The variant of the first dispatch.
        None => gemv::default_variant(caps, sizes.rows[0], sizes.cols[0]),
    };
    let words = |sizes: &[usize]| sizes.iter().map(usize::to_string).collect::<Vec<_>>().join("/");
    let groups = choice.map_or("apart".into(), |choice| format!("{} groups", choice.groups));
    let attention = heads.map_or(String::new(), |Heads { heads, kv_heads, head_dim }| {
        let window = sizes.window.map_or(String::new(), |window| format!(", window of {window}"));
        format!(", {heads}/{kv_heads} heads of {head_dim} after {}{window}", sizes.position)
    });
    let (turns, row) = (Mutex::new(HashMap::new()), sizes.row());
    let (made, recorded, expected) = (sizes.clone(), sizes.clone(), sizes.clone());
    Case {
        label: format!("{} x {}{attention}, {groups}", words(&sizes.rows), words(&sizes.cols)),
        variant,
        flops: 2 * weights as u64,
        bytes: matrices + stored,
        // Errors of a stage propagate to the next ones, and the pool is rounded.
        tolerance: 1e-6,
        buffers: Box::new(move || buffers(&made, dtype)),
        record: Box::new(move |recorder, b| {
            let sets = [0, 1].map(|set| &b[recorded.places().links + set]);
            let mut turns = lock(&turns);
            // Dispatches of the same buffers alternate between the two sets of links.
            let turn = turns.entry(sets[0].id()).or_insert_with(|| {
                if choice.is_some() && recorded.is_whole() {
                    // The tuner's buffers hold zeros.
                    let fresh = links::fresh(recorded.links());
                    sets.into_iter().for_each(|set| recorder.gpu().write(set, &fresh));
                }
                false
            });
            *turn = !*turn;
            record(&recorded, choice, (&row, dtype), recorder, b, *turn);
        }),
        reference: Box::new(move |b| reference_of(&expected, dtype, b)),
    }
}

fn buffers(sizes: &Sizes, dtype: KvDtype) -> Vec<CaseBuffer> {
    let ChainShape { hidden, end, heads } = sizes.shape;
    let mut random = Random::new(hidden as u64);
    let matrix = |i: usize| random_matrix(FORMAT, sizes.rows[i], sizes.cols[i], i as u64 + 1);
    let mut all: Vec<CaseBuffer> = Vec::new();
    // In a small case, links already hold the inputs that no stage publishes. Stages 3 and 4 publish all values.
    let mut links = links::fresh(sizes.links());
    match end {
        Some(EndShape { attended, inner }) => {
            all.extend((0..3).flat_map(matrix));
            all.extend([attended, hidden, hidden].map(|len| CaseBuffer::input(&random.values(len))));
            all.push(CaseBuffer::in_out(&random.values(hidden)));
            let inputs: usize = sizes.cols[1..].iter().sum();
            let values = &mut links[VALUES..];
            values.iter_mut().zip(random.values(inputs)).for_each(|(word, value)| *word = value.to_bits());
            let left = [sizes.rows[0], sizes.rows[1] / 2, sizes.rows[2]];
            for ((begin, left), cols) in [0, hidden, hidden + inner].into_iter().zip(left).zip(&sizes.cols[1..]) {
                (0..left).for_each(|n| values[begin + place(n, *cols)] = PENDING);
            }
        }
        None => {
            all.extend(matrix(0));
            all.extend([hidden, hidden].map(|len| CaseBuffer::input(&random.values(len))));
        }
    }
    all.extend([CaseBuffer::words(links.clone()), CaseBuffer::words(links)]);
    match heads {
        Some(of @ Heads { heads, head_dim, .. }) => {
            all.extend(end.map(|_| matrix(3)).into_iter().flatten());
            let turns = random.values((sizes.position + 1) * head_dim);
            all.extend([CaseBuffer::input(&turns), CaseBuffer::output(heads * head_dim)]);
            let words = sizes.pool(of, dtype, &mut random);
            all.extend([CaseBuffer { words, purpose: Purpose::Kv(dtype, head_dim) }, sizes.row().buffer()]);
        }
        None => all.extend([CaseBuffer::in_out(&random.values(hidden)), CaseBuffer::scratch(hidden)]),
    }
    all
}

fn record(
    sizes: &Sizes,
    choice: Option<ChainChoice>,
    (row, dtype): (&CaseRows, KvDtype),
    recorder: &mut Recorder,
    b: &[Buffer<u32>],
    turn: bool,
) {
    let Places { x, links, rest } = sizes.places();
    let of = |i: usize| b[i].cast::<f32>();
    let slice = |i: usize, at: usize| cases::slice(FORMAT, sizes.rows[i], sizes.cols[i], &b[at], &b[at + 1]);
    let slices: Vec<_> = (0..x / 2).map(|i| slice(i, 2 * i)).collect();
    let sets = if turn { [&b[links + 1], &b[links]] } else { [&b[links], &b[links + 1]] };
    let turn = LinkSets::of(sets, sizes.reset_words());
    // These buffers follow the attention matrix, or the links if that matrix is the first.
    let is_start = sizes.shape.end.is_none();
    let (qkv, after) = match sizes.shape.heads {
        Some(_) if is_start => (Some(slice(0, 0)), rest),
        Some(_) => (Some(slice(3, rest)), rest + 2),
        None => (None, rest),
    };
    let [first, second] = [after, after + 1].map(of);
    let stored = sizes.shape.heads.map(|Heads { kv_heads, head_dim, .. }| {
        (row.pool(&b[after + 2], [kv_heads, head_dim], dtype), row.on_device(recorder, &b[after + 3]))
    });
    let attended = qkv.as_ref().zip(stored.as_ref()).map(|(qkv, (cache, rows))| AttentionStages {
        qkv,
        rope: &first,
        shape: sizes.attention_shape(),
        rows,
        cache,
        y: &second,
    });
    if is_start {
        let (values, norm) = (of(x), of(x + 1));
        let start = GemvStart { x: &values, norm: &norm, eps: EPS };
        let next = attended.as_ref().expect("a chain without stages 0 to 2 has attention");
        match choice {
            Some(choice) => start.record_to(recorder, choice, turn, next),
            None => start_apart(recorder, &start, next),
        }
        return;
    }
    let [values, norm0, norm2, sum] = [x, x + 1, x + 2, x + 3].map(of);
    let chain = GemvChain {
        out: &slices[0],
        out_norm: &norm0,
        gate_up: &slices[1],
        down: &slices[2],
        down_norm: &norm2,
        eps: EPS,
    };
    let end = match &attended {
        Some(attended) => End::Attended(attended),
        None => End::Normed { y: &first, squares: &second },
    };
    match choice {
        Some(choice) => chain.record_to(recorder, choice, [&values, &sum], turn, end),
        None => apart(recorder, &chain, [&values, &sum], end),
    }
}

/// Separate dispatches at full size.
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
        End::Attended(next) => {
            let parts = add(recorder, chain.down, &activated, chain.down_norm, &left, &squares);
            let turn = GemvRope { parts, eps: chain.eps, heads: next.shape.heads };
            let q = recorder.temporary(next.shape.heads * next.cache.head_dim);
            turn.record(recorder, next.qkv, &left, &squares, next.rope, next.rows, &q, next.cache);
            attend(recorder, next, &q);
        }
    }
}

/// Separate dispatches of the first layer's beginning.
fn start_apart(recorder: &mut Recorder, start: &GemvStart<'_>, next: &AttentionStages<'_>) {
    let AttentionStages { qkv, rope, shape, rows, cache, .. } = *next;
    let AttentionShape { heads, rotary_dim, .. } = shape;
    let [normed, products, q] = [qkv.cols, qkv.rows, heads * rotary_dim].map(|len| recorder.temporary(len));
    RmsNorm { rows: 1, cols: qkv.cols, eps: start.eps }.record(recorder, start.x, start.norm, &normed);
    Gemv { batch: 1, y_stride: qkv.rows }.record(recorder, qkv, &normed, &products);
    Rope { heads, rotary_dim }.record(recorder, &products, rope, &q, cache, rows);
    attend(recorder, next, &q);
}

fn attend(recorder: &mut Recorder, next: &AttentionStages<'_>, q: &Buffer<f32>) {
    let AttentionStages { shape, rows, cache, y, .. } = *next;
    Attention { shape }.record(recorder, q, cache, rows, y);
}

fn reference_of(sizes: &Sizes, dtype: KvDtype, b: &[CaseBuffer]) -> Vec<Vec<f32>> {
    let Places { x, links, rest } = sizes.places();
    let normed = |i: usize, at: usize, u: &[f32], norm: &[f32]| {
        let square: f32 = u.iter().map(|v| v * v).sum();
        let x: Vec<f32> = u.iter().zip(norm).map(|(u, norm)| u * norm).collect();
        let mut y = vec![0.0; sizes.rows[i]];
        reference::gemv_scaled(&weights(sizes, b, i, at), &x, &[square], EPS, &mut y);
        y
    };
    let Some(EndShape { inner, .. }) = sizes.shape.end else {
        let qkv = normed(0, 0, b[x].values(), b[x + 1].values());
        return attention_of(sizes, dtype, &qkv, &b[rest..]);
    };
    let hidden = sizes.shape.hidden;
    let product = |i: usize, x: &[f32]| {
        let mut y = vec![0.0; sizes.rows[i]];
        reference::gemv(&weights(sizes, b, i, 2 * i), x, sizes.cols[i], &mut y);
        y
    };
    // Inputs of product i that are in the links from the beginning.
    let link = |i: usize, begin: usize| -> Vec<f32> {
        let cols = sizes.cols[i];
        (0..cols).map(|n| b[links].values()[VALUES + begin + place(n, cols)]).collect()
    };
    let [norm0, norm2] = [x + 1, x + 2].map(|i: usize| b[i].values());
    let mut sum = b[x + 3].values().to_vec();
    let mut u = link(1, 0);
    let delta = product(0, b[x].values());
    (0..sizes.rows[0]).for_each(|n| u[n] = sum[n] + delta[n]);
    let gate_up = normed(1, 2, &u, norm0);
    let mut v = link(2, hidden);
    let half = sizes.rows[1] / 2;
    glu(&gate_up, Activation::Silu, half, &mut v[..half]);
    let delta = product(2, &v);
    (0..sizes.rows[2]).for_each(|n| sum[n] = u[n] + delta[n]);
    if sizes.shape.heads.is_none() {
        let mut y = b[rest].values().to_vec();
        (0..sizes.rows[2]).for_each(|n| y[n] = sum[n] * norm2[n]);
        return vec![sum, y];
    }
    let mut u = link(3, hidden + inner);
    u[..sizes.rows[2]].copy_from_slice(&sum[..sizes.rows[2]]);
    let qkv = normed(3, rest, &u, norm2);
    std::iter::once(sum).chain(attention_of(sizes, dtype, &qkv, &b[rest + 2..])).collect()
}

/// Weights of product i, whose matrix begins at buffer `at`.
fn weights(sizes: &Sizes, b: &[CaseBuffer], i: usize, at: usize) -> Vec<f32> {
    cases::values(FORMAT, sizes.rows[i], sizes.cols[i], &b[at].words, &b[at + 1].words)
}

/// The output of attention, and the pool. `b`: buffers from the rotary table on.
fn attention_of(sizes: &Sizes, dtype: KvDtype, qkv: &[f32], b: &[CaseBuffer]) -> Vec<Vec<f32>> {
    let Heads { heads, kv_heads, head_dim } = sizes.shape.heads.expect("a chain that ends with attention");
    let mut kv = dtype.values(head_dim, &b[2].words);
    let [mut q, mut y] = [(); 2].map(|()| vec![0.0; heads * head_dim]);
    let (row, shape) = (sizes.row(), RopeShape { heads, kv_heads, head_dim, rotary_dim: head_dim });
    rope(shape, &row.spans(), qkv, b[0].values(), &mut q, &mut kv);
    if dtype == KvDtype::F16 {
        // Attention sees the stored values.
        let largest = f16::MAX.to_f32();
        let stored = |value: &mut f32| *value = f16::from_f32(value.clamp(-largest, largest)).to_f32();
        kv.iter_mut().for_each(stored);
    }
    attention(sizes.attention_shape(), &row.spans(), &q, &kv, &mut y);
    vec![y, kv]
}

/// The place of value n of `cols` in the links: see links.wgsl.
fn place(n: usize, cols: usize) -> usize {
    n % 16 * (cols / 16) + n / 16
}

#[cfg(all(test, not(target_arch = "wasm32")))]
mod tests {
    use super::*;
    use crate::gpu::{OpenOptions, block_on, for_test};

    /// Dispatches of each case: each set of links is used twice.
    const ROUNDS: usize = 4;

    /// Repeats a case's dispatch. Returns true if a workgroup stopped waiting.
    fn expires(case: &Case, recorder: &mut Recorder, buffers: &[Buffer<u32>], Places { links, .. }: Places) -> bool {
        (0..ROUNDS).for_each(|_| (case.record)(recorder, buffers));
        [links, links + 1].into_iter().any(|set| {
            let words = block_on(recorder.read(&buffers[set]).unwrap()).unwrap();
            words[super::super::words::EXPIRED] != 0
        })
    }

    #[test]
    fn repeated_dispatches_never_wait_in_vain() {
        let Some(gpu) = for_test(OpenOptions::PROFILES[1].1) else { return };
        let mut recorder = Recorder::new(&gpu);
        let whole = ChainShape {
            hidden: 128,
            end: Some(EndShape { attended: 192, inner: 320 }),
            heads: Some(Heads { heads: 8, kv_heads: 2, head_dim: 24 }),
        };
        for shape in [ChainShape { end: None, ..whole }, whole, ChainShape { heads: None, ..whole }] {
            let Some(choice) = chains(gpu.caps(), &shape).pop() else { return };
            // The tuner's buffers are zeros.
            let sizes = Sizes::of(&shape, FEW_BEFORE);
            let zeros = sizes.lens(KvDtype::F16).into_iter().map(|len| gpu.zeroed(len).unwrap());
            let case = sized_case(gpu.caps(), sizes.clone(), Some(choice), KvDtype::F16);
            let buffers: Vec<_> = zeros.collect();
            assert!(!expires(&case, &mut recorder, &buffers, sizes.places()), "{}", case.label);

            let small = Sizes::small(&shape, FEW_BEFORE);
            let case = sized_case(gpu.caps(), small.clone(), Some(choice), KvDtype::F16);
            let buffers: Vec<_> = (case.buffers)().iter().map(|buffer| gpu.upload(&buffer.words).unwrap()).collect();
            assert!(!expires(&case, &mut recorder, &buffers, small.places()), "{}", case.label);
        }
    }
}
