//! Cases: each makes several draws with all four kernels.

use super::{IN_PROMPT, Past, Rules, Sample, adjust_variant, draw_variant, reference, select_variant, weigh_variant};
use crate::{
    Case, CaseSet, Variant,
    cases::Random,
    gpu::{Buffer, Caps},
    kernel::{CaseBuffer, Purpose},
};

const PLAIN: Rules =
    Rules { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, presence: 0.0, frequency: 0.0, repetition: 1.0 };
const PENALTIES: Rules = Rules { presence: 0.4, frequency: 0.3, repetition: 1.3, ..PLAIN };
/// Draws of a case.
const DRAWS: usize = 6;
/// Words between two results: WebGPU's alignment of bindings.
const STEP: usize = 64;

pub(super) fn adjust(_: &Caps, set: CaseSet) -> Vec<Case> {
    let rules = [(49_152, PLAIN), (77, PLAIN), (5000, PENALTIES), (2048, PENALTIES), (1, PLAIN)];
    of(set, &rules, |rules| adjust_variant(has_history(rules)))
}

pub(super) fn select(_: &Caps, set: CaseSet) -> Vec<Case> {
    let rules = [
        (1000, Rules { top_k: 40, ..PLAIN }),
        (151_936, Rules { top_k: 1, top_p: 0.5, ..PLAIN }),
        (5000, Rules { top_p: 0.9, ..PLAIN }),
        (49_152, Rules { top_p: 0.95, top_k: 40, temperature: 0.7, ..PLAIN }),
        (32_000, Rules { top_p: 0.6, temperature: 2.5, ..PLAIN }),
        (300, Rules { top_k: 7, top_p: 0.8, min_p: 0.1, ..PENALTIES }),
        (300, Rules { top_k: 900, top_p: 1e-6, ..PLAIN }),
    ];
    of(set, &rules, |_| select_variant())
}

pub(super) fn weigh(_: &Caps, set: CaseSet) -> Vec<Case> {
    let rules = [
        (128_256, Rules { temperature: 0.8, ..PLAIN }),
        (5000, Rules { min_p: 0.05, temperature: 1.5, ..PLAIN }),
        (77, Rules { top_k: 3, ..PLAIN }),
    ];
    of(set, &rules, |_| weigh_variant())
}

pub(super) fn draw(_: &Caps, set: CaseSet) -> Vec<Case> {
    let rules = [
        (2049, PLAIN),
        (49_152, Rules { top_p: 0.8, ..PENALTIES }),
        (600, Rules { temperature: 0.0, ..PENALTIES }),
        (1000, Rules { temperature: 1e-30, ..PLAIN }),
    ];
    of(set, &rules, |rules| draw_variant(has_history(rules)))
}

fn has_history(rules: &Rules) -> bool {
    rules.repetition != 1.0
}

fn of(set: CaseSet, rules: &[(usize, Rules)], variant: fn(&Rules) -> Variant) -> Vec<Case> {
    let bench = [(128_256, Rules { top_p: 0.95, top_k: 40, ..PENALTIES })];
    let rules = if set == CaseSet::Bench { &bench[..] } else { rules };
    rules.iter().map(|(cols, rules)| case(*cols, *rules, variant(rules))).collect()
}

/// Random numbers of a case.
fn randoms(cols: usize) -> Vec<f64> {
    let mut random = Random::new(cols as u64 + 5);
    (0..DRAWS).map(|_| random.next() as f64 / 2f64.powi(64)).collect()
}

fn case(cols: usize, rules: Rules, variant: Variant) -> Case {
    Case {
        label: format!("{cols}, {rules:?}"),
        variant,
        flops: 0,
        bytes: (DRAWS * 8 * cols) as u64,
        tolerance: 0.0,
        buffers: Box::new(move || {
            let mut random = Random::new(cols as u64);
            // A few likely tokens among many unlikely ones, as in models; ties; infinity, NaN and minus zero.
            let mut x: Vec<f32> = (0..cols).map(|_| 4.0 * random.value() - 4.0).collect();
            for _ in 0..12 {
                let (i, j) = (random.below(cols), random.below(cols));
                x[i] = 12.0 + 3.0 * random.value();
                x[j] = x[i];
            }
            if cols > 100 {
                (x[50], x[51], x[52]) = (f32::NEG_INFINITY, f32::NAN, -0.0);
            }
            let history = (0..cols).flat_map(|i| {
                let in_prompt = if i % 3 == 0 { IN_PROMPT } else { 0 };
                let bias: f32 = if i % 5 == 0 { 0.5 } else { 0.0 };
                [(i % 4) as u32 | in_prompt, bias.to_bits()]
            });
            let y = CaseBuffer { words: vec![0; DRAWS * STEP], purpose: Purpose::U32 };
            vec![CaseBuffer::input(&x), CaseBuffer::words(history.collect()), y]
        }),
        record: Box::new(move |recorder, b| {
            let (history, has_history) = (b[1].clone(), has_history(&rules));
            let sample = Sample { cols, rules, history, has_history };
            let x: Buffer<f32> = b[0].cast();
            for (i, random) in randoms(cols).into_iter().enumerate() {
                // Each draw changes the history of the next one.
                sample.record(recorder, &x, random, &b[2].slice(i * STEP, STEP));
            }
        }),
        reference: Box::new(move |b| {
            let past = |words: &[u32]| Past { count: words[0], bias: f32::from_bits(words[1]) };
            let mut history: Vec<Past> = b[1].words.chunks_exact(2).map(past).collect();
            let mut y = vec![0.0; DRAWS * STEP];
            for (i, random) in randoms(cols).into_iter().enumerate() {
                let known = has_history(&rules).then_some(&history[..]);
                let clear = reference::is_clear(b[0].values(), &rules, known, random, 3e-6);
                assert!(clear, "sample: draw {i} of {cols} {rules:?} is too close to a border");
                let token = reference::draw(b[0].values(), &rules, known, random);
                y[i * STEP] = token as f32;
                history[token as usize].count += 1;
            }
            vec![y]
        }),
    }
}
