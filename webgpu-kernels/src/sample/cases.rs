//! Cases: each makes several draws with all kernels, from one row or from several rows with rules of their own.

use super::{IN_PROMPT, Past, Rules, Sample, SampleRow, SampleRows, adjust_variant, count_variant, reference, variant};
use crate::{
    Case, CaseSet, Variant,
    argmax::argmax,
    cases::Random,
    gpu::{Buffer, Caps},
    kernel::{CaseBuffer, Purpose, product},
};

/// The rules of a row. `None`: the most likely token.
type Row = Option<Rules>;

pub(super) const PLAIN: Rules =
    Rules { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, presence: 0.0, frequency: 0.0, repetition: 1.0 };
pub(super) const PENALTIES: Rules = Rules { presence: 0.4, frequency: 0.3, repetition: 1.3, ..PLAIN };
/// Draws of a row in a test.
const DRAWS: usize = 6;
/// Words between two results: WebGPU's alignment of bindings.
const STEP: usize = 64;

pub(super) fn adjust(_: &Caps, set: CaseSet) -> Vec<Case> {
    let rules = [(49_152, PLAIN), (77, PLAIN), (5000, PENALTIES), (2048, PENALTIES), (1, PLAIN)];
    let rows = [(3000, vec![Some(PLAIN), Some(PENALTIES), None, Some(GREEDY), Some(PENALTIES)])];
    let bench = [(128_256, vec![Some(Rules { top_p: 0.95, top_k: 40, ..PENALTIES }); 64])];
    of(set, &rules, &rows, &bench, |rows| adjust_variant(rows.iter().flatten().any(has_history)))
}

pub(super) fn select(_: &Caps, set: CaseSet) -> Vec<Case> {
    let rules = [
        (1000, TOP_K),
        (151_936, Rules { top_k: 1, top_p: 0.5, ..PLAIN }),
        (5000, TOP_P),
        (49_152, Rules { top_p: 0.95, top_k: 40, temperature: 0.7, ..PLAIN }),
        (32_000, Rules { top_p: 0.6, temperature: 2.5, ..PLAIN }),
        (300, Rules { top_k: 7, top_p: 0.8, min_p: 0.1, ..PENALTIES }),
        (300, Rules { top_k: 900, top_p: 1e-6, ..PLAIN }),
    ];
    let both = Rules { top_p: 0.95, top_k: 40, temperature: 0.7, ..PLAIN };
    let rows = [
        (2100, vec![Some(TOP_P), Some(TOP_K)]),
        (4500, vec![Some(TOP_K), None, Some(TOP_P), Some(PLAIN), Some(both), Some(GREEDY), Some(MIN_P)]),
        (700, vec![Some(Rules { top_p: 0.9, ..PENALTIES }), Some(both), Some(Rules { top_k: 5, ..PENALTIES })]),
    ];
    let bench = [1, 8, 64].map(|rows| (128_256, vec![Some(both); rows]));
    of(set, &rules, &rows, &bench, |_| variant())
}

pub(super) fn weigh(_: &Caps, set: CaseSet) -> Vec<Case> {
    let rules = [(128_256, Rules { temperature: 0.8, ..PLAIN }), (5000, MIN_P), (77, Rules { top_k: 3, ..PLAIN })];
    let rows = [(2049, vec![Some(MIN_P), Some(GREEDY), Some(Rules { temperature: 0.8, ..PLAIN }), None])];
    let bench = [1, 8, 64].map(|rows| (128_256, vec![Some(Rules { temperature: 0.8, ..PLAIN }); rows]));
    of(set, &rules, &rows, &bench, |_| variant())
}

pub(super) fn draw(_: &Caps, set: CaseSet) -> Vec<Case> {
    let rules = [
        (2049, PLAIN),
        (49_152, Rules { top_p: 0.8, ..PENALTIES }),
        (600, Rules { temperature: 0.0, ..PENALTIES }),
        (1000, Rules { temperature: 1e-30, ..PLAIN }),
    ];
    let rows = [
        (900, vec![None, Some(PLAIN)]),
        (900, vec![None; 3]),
        (3, vec![Some(PLAIN), Some(GREEDY), Some(TOP_P), Some(PENALTIES), Some(TOP_K), None]),
    ];
    let bench = [(128_256, vec![None; 64])];
    of(set, &rules, &rows, &bench, |_| variant())
}

pub(super) fn count(_: &Caps, set: CaseSet) -> Vec<Case> {
    let rules = [(50, Rules { frequency: 4.0, ..PENALTIES })];
    let greedy = Rules { temperature: 0.0, frequency: 2.0, ..PENALTIES };
    let rows = [(20, vec![Some(greedy), None, Some(Rules { presence: 3.0, ..PENALTIES }), Some(PLAIN), Some(greedy)])];
    let bench = [1, 8].map(|rows| (128_256, vec![Some(PENALTIES); rows]));
    of(set, &rules, &rows, &bench, |_| count_variant())
}

const TOP_K: Rules = Rules { top_k: 40, ..PLAIN };
const TOP_P: Rules = Rules { top_p: 0.9, ..PLAIN };
const MIN_P: Rules = Rules { min_p: 0.05, temperature: 1.5, ..PLAIN };
const GREEDY: Rules = Rules { temperature: 0.0, ..PLAIN };

fn has_history(rules: &Rules) -> bool {
    rules.repetition != 1.0
}

/// Cases of single rows, and of several rows.
fn of(
    set: CaseSet,
    single: &[(usize, Rules)],
    several: &[(usize, Vec<Row>)],
    bench: &[(usize, Vec<Row>)],
    variant: fn(&[Row]) -> Variant,
) -> Vec<Case> {
    if set == CaseSet::Bench {
        return bench.iter().map(|(cols, rows)| case(*cols, rows, 1, variant(rows))).collect();
    }
    let single = single.iter().map(|(cols, rules)| (*cols, vec![Some(*rules)]));
    let all = single.chain(several.iter().cloned());
    all.map(|(cols, rows)| case(cols, &rows, DRAWS, variant(&rows))).collect()
}

/// Logits of a row: a few likely tokens among many unlikely ones, as in models; ties; infinity, NaN and minus zero.
pub(super) fn logits(cols: usize, random: &mut Random) -> Vec<f32> {
    let mut x: Vec<f32> = (0..cols).map(|_| 4.0 * random.value() - 4.0).collect();
    for _ in 0..12 {
        let (i, j) = (random.below(cols), random.below(cols));
        x[i] = 12.0 + 3.0 * random.value();
        x[j] = x[i];
    }
    if cols > 100 {
        (x[50], x[51], x[52]) = (f32::NEG_INFINITY, f32::NAN, -0.0);
    }
    x
}

/// The history of a row.
pub(super) fn history(cols: usize, row: usize) -> Vec<Past> {
    let past = |i: usize| {
        let in_prompt = if (i + row).is_multiple_of(3) { IN_PROMPT } else { 0 };
        Past { count: ((i + row) % 4) as u32 | in_prompt, bias: if i.is_multiple_of(5) { 0.5 } else { 0.0 } }
    };
    (0..cols).map(past).collect()
}

/// Random numbers of each draw from each row.
fn randoms(cols: usize, rows: usize, draws: usize) -> Vec<Vec<f64>> {
    let mut random = Random::new(cols as u64 + 5);
    (0..draws).map(|_| (0..rows).map(|_| random.next() as f64 / 2f64.powi(64)).collect()).collect()
}

fn label(cols: usize, rows: &[Row]) -> String {
    match rows {
        [Some(rules)] => format!("{cols}, {rules:?}"),
        [first, rest @ ..] if rest.iter().all(|row| row == first) => format!("{} x {cols}, {first:?}", rows.len()),
        _ => format!("{} x {cols}, {rows:?}", rows.len()),
    }
}

fn case(cols: usize, rows: &[Row], draws: usize, variant: Variant) -> Case {
    let rows = rows.to_vec();
    let (count, label) = (rows.len(), label(cols, &rows));
    // Histories are slices of one buffer.
    let history_step = (2 * cols).next_multiple_of(STEP);
    let (of_buffers, of_record) = (rows.clone(), rows.clone());
    Case {
        label,
        variant,
        flops: 0,
        bytes: 8 * product(&[draws, count, cols]),
        tolerance: 0.0,
        buffers: Box::new(move || {
            let mut random = Random::new(cols as u64);
            let x: Vec<f32> = (0..count).flat_map(|_| logits(cols, &mut random)).collect();
            let mut words = Vec::new();
            for (row, _) in of_buffers.iter().enumerate().filter(|(_, rules)| rules.is_some_and(|it| has_history(&it)))
            {
                words.resize(row * history_step, 0);
                words.extend(history(cols, row).iter().flat_map(|past| [past.count, past.bias.to_bits()]));
            }
            words.resize(words.len().next_multiple_of(STEP).max(STEP), 0);
            let y = CaseBuffer { words: vec![0; draws * STEP], purpose: Purpose::U32 };
            vec![CaseBuffer::input(&x), CaseBuffer::words(words), y]
        }),
        record: Box::new(move |recorder, b| {
            let sample = |(row, rules): (usize, &Row)| {
                let rules = (*rules)?;
                let history = has_history(&rules).then(|| b[1].slice(row * history_step, 2 * cols));
                Some(Sample { cols, rules, history })
            };
            let samples: Vec<Option<Sample>> = of_record.iter().enumerate().map(sample).collect();
            let x: Buffer<f32> = b[0].cast();
            for (i, randoms) in randoms(cols, count, draws).into_iter().enumerate() {
                let row = |(sample, random)| SampleRow { with: Option::as_ref(sample), random };
                let rows: Vec<SampleRow<'_>> = samples.iter().zip(randoms).map(row).collect();
                // Each draw changes the histories of the next one.
                SampleRows { cols, rows: &rows }.record(recorder, &x, &b[2].slice(i * STEP, STEP));
            }
        }),
        reference: Box::new(move |b| {
            let mut y = vec![0.0; draws * STEP];
            let randoms = randoms(cols, count, draws);
            for (row, (x, rules)) in b[0].values().chunks_exact(cols).zip(&rows).enumerate() {
                let tokens = expected(x, rules, row, randoms.iter().map(|randoms| randoms[row]));
                tokens.iter().enumerate().for_each(|(i, token)| y[i * STEP + row] = *token as f32);
            }
            vec![y]
        }),
    }
}

/// The tokens that draws from a row give.
fn expected(x: &[f32], rules: &Row, row: usize, randoms: impl Iterator<Item = f64>) -> Vec<u32> {
    let cols = x.len();
    let Some(rules) = rules else {
        let mut best = [0];
        argmax(x, cols, &mut best);
        return randoms.map(|_| best[0]).collect();
    };
    let mut history = has_history(rules).then(|| history(cols, row));
    let draw = |random| {
        let clear = reference::is_clear(x, rules, history.as_deref(), random, 3e-6);
        assert!(clear, "sample: a draw from row {row} of {cols} {rules:?} is too close to a border");
        let token = reference::draw(x, rules, history.as_deref(), random);
        if let Some(history) = &mut history {
            history[token as usize].count += 1;
        }
        token
    };
    randoms.map(draw).collect()
}
