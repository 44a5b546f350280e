//! Each row of a batch gives the bits that it gives alone: tokens and histories, by the kernels themselves. Distributions are flat, so
//! that many random numbers are as close to a border as rounding is.

use super::{
    Past, Rules, Sample, SampleRow, SampleRows,
    cases::{PENALTIES, PLAIN, history, logits},
};
use crate::{
    Gpu,
    argmax::Argmax,
    cases::Random,
    gpu::{Buffer, OpenOptions, Recorder, block_on, for_test},
};

const COLS: usize = 4200;

/// Rules of each kind.
fn kinds() -> Vec<Option<Rules>> {
    let greedy = Rules { temperature: 0.0, ..PLAIN };
    vec![
        Some(PLAIN),
        None,
        Some(Rules { temperature: 0.6, ..PLAIN }),
        Some(Rules { top_k: 300, ..PLAIN }),
        Some(PENALTIES),
        Some(Rules { top_p: 0.7, temperature: 3.0, ..PLAIN }),
        Some(Rules { top_k: 2000, top_p: 0.8, min_p: 0.01, ..PLAIN }),
        Some(greedy),
        Some(Rules { min_p: 0.05, ..PLAIN }),
        Some(Rules { top_k: 900, top_p: 0.9, ..PENALTIES }),
        Some(Rules { temperature: 0.0, ..PENALTIES }),
        Some(PENALTIES),
    ]
}

/// Rows of logits: flat ones, peaked ones, and degenerate ones.
fn rows_of_logits(count: usize, seed: u64) -> Vec<f32> {
    let mut random = Random::new(seed);
    let row = |i: usize| match i % 5 {
        0 => vec![f32::NAN; COLS],
        1 => logits(COLS, &mut random),
        2 if i == 2 => vec![f32::NEG_INFINITY; COLS],
        _ => (0..COLS).map(|_| random.value()).collect(),
    };
    (0..count).flat_map(row).collect()
}

fn sample(gpu: &Gpu, rules: Rules, row: usize) -> Sample {
    let history: Option<Vec<Past>> = (rules.repetition != 1.0).then(|| history(COLS, row));
    Sample::new(gpu, rules, COLS, history.as_deref()).unwrap()
}

fn read(recorder: &mut Recorder, buffer: &Buffer<u32>) -> Vec<u32> {
    block_on(recorder.read(buffer).unwrap()).unwrap()
}

#[test]
fn rows_draw_the_same_together_and_alone() {
    for options in [OpenOptions::default(), OpenOptions::WEBGPU_DEFAULTS] {
        let Some(gpu) = for_test(options) else { return };
        check(&gpu);
    }
}

fn check(gpu: &Gpu) {
    const DRAWS: usize = 4;
    // Two rows of each kind, whose logits differ.
    let kinds: Vec<Option<Rules>> = kinds().into_iter().chain(kinds().into_iter().rev()).collect();
    let samples = |gpu: &Gpu| -> Vec<Option<Sample>> {
        let samples = kinds.iter().enumerate().map(|(row, rules)| rules.map(|rules| sample(gpu, rules, row)));
        samples.collect()
    };
    let (together, alone) = (samples(gpu), samples(gpu));
    let mut recorder = Recorder::new(gpu);
    let mut random = Random::new(7);
    let mut distinct = std::collections::BTreeSet::new();
    for draw in 0..DRAWS {
        let logits = rows_of_logits(kinds.len(), 100 + draw as u64);
        let randoms: Vec<f64> = kinds.iter().map(|_| random.next() as f64 / 2f64.powi(64)).collect();
        let rows = together.iter().zip(&randoms);
        let rows: Vec<SampleRow<'_>> =
            rows.map(|(sample, &random)| SampleRow { with: sample.as_ref(), random }).collect();
        let x = gpu.upload(&logits).unwrap();
        let y = gpu.upload(&vec![u32::MAX; kinds.len()]).unwrap();
        SampleRows { cols: COLS, rows: &rows }.record(&mut recorder, &x, &y);
        let found = read(&mut recorder, &y);
        for (row, sample) in alone.iter().enumerate() {
            let x = gpu.upload(&logits[row * COLS..][..COLS]).unwrap();
            let y = gpu.upload(&[u32::MAX]).unwrap();
            match sample {
                Some(sample) => sample.record(&mut recorder, &x, randoms[row], &y),
                None => Argmax { rows: 1, cols: COLS }.record(&mut recorder, &x, &y),
            }
            let token = read(&mut recorder, &y)[0];
            assert!((token as usize) < COLS, "row {row}: {token}");
            assert_eq!(found[row], token, "draw {draw}, row {row}: {:?}", kinds[row]);
            distinct.insert(token);
        }
    }
    assert!(distinct.len() > 40, "{} tokens", distinct.len());
    for (row, (together, alone)) in together.iter().zip(&alone).enumerate() {
        let histories = [together, alone].map(|sample| sample.as_ref().and_then(|sample| sample.history.as_ref()));
        let [Some(together), Some(alone)] = histories else { continue };
        let [together, alone] = [together, alone].map(|history| read(&mut recorder, history));
        assert_eq!(together, alone, "history of row {row}");
        let counts = |words: &[u32]| words.iter().step_by(2).map(|count| u64::from(*count)).sum::<u64>();
        let before: u64 = history(COLS, row).iter().map(|past| u64::from(past.count)).sum();
        assert_eq!(counts(&together), before + DRAWS as u64, "tokens in the history of row {row}");
    }
}
