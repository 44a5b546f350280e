//! Compares a million draws of the sampler with the documented distribution, by chi-square, for every setting and for mixtures.
//!
//! Each mixture also rejects every order of operations with two neighbors exchanged, if the exchange changes the distribution.

use infer_core::sampler::{Sampler, SamplingParams};

const DRAWS: usize = 1_000_000;
/// Tokens of the prompt, and of the answer so far.
const PROMPT: [u32; 5] = [0, 3, 3, 8, 15];
const ANSWER: [u32; 6] = [3, 1, 1, 5, 1, 14];

/// The operations on the logits.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Step {
    Bias,
    PresenceAndFrequency,
    Repetition,
    Temperature,
    TopK,
    TopP,
    MinP,
}

/// The documented order.
const ORDER: [Step; 7] =
    [Step::Bias, Step::PresenceAndFrequency, Step::Repetition, Step::Temperature, Step::TopK, Step::TopP, Step::MinP];

/// The probabilities by definition, with the steps in `order`.
fn distribution(logits: &[f32], params: &SamplingParams, order: &[Step]) -> Vec<f64> {
    // Minus infinity marks a token that was cut.
    let mut logits: Vec<f64> = logits.iter().map(|&logit| f64::from(logit)).collect();
    for step in order {
        apply(*step, &mut logits, params);
    }
    softmax(&logits)
}

fn softmax(logits: &[f64]) -> Vec<f64> {
    let best = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = logits.iter().map(|logit| (logit - best).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|weight| weight / sum).collect()
}

fn apply(step: Step, logits: &mut [f64], params: &SamplingParams) {
    let times = |id: usize, tokens: &[u32]| tokens.iter().filter(|&&token| token as usize == id).count() as f64;
    let probabilities = softmax(logits);
    // By falling probability.
    let mut ranked: Vec<usize> = (0..logits.len()).collect();
    ranked.sort_by(|&a, &b| probabilities[b].total_cmp(&probabilities[a]));
    match step {
        Step::Bias => params.logit_bias.iter().for_each(|&(id, bias)| logits[id as usize] += f64::from(bias)),
        Step::PresenceAndFrequency => {
            for (id, logit) in logits.iter_mut().enumerate() {
                let count = times(id, &ANSWER);
                let presence = if count > 0.0 { f64::from(params.presence_penalty) } else { 0.0 };
                *logit -= presence + count * f64::from(params.frequency_penalty);
            }
        }
        Step::Repetition => {
            let factor = f64::from(params.repetition_penalty);
            for (id, logit) in logits.iter_mut().enumerate() {
                if times(id, &PROMPT) + times(id, &ANSWER) > 0.0 {
                    *logit = if *logit < 0.0 { *logit * factor } else { *logit / factor };
                }
            }
        }
        Step::Temperature => logits.iter_mut().for_each(|logit| *logit /= f64::from(params.temperature)),
        Step::TopK => {
            let kept = if params.top_k == 0 { ranked.len() } else { params.top_k.min(ranked.len()) };
            ranked[kept..].iter().for_each(|&id| logits[id] = f64::NEG_INFINITY);
        }
        Step::TopP => {
            let mut before = 0.0;
            for &id in &ranked {
                if before >= f64::from(params.top_p) {
                    logits[id] = f64::NEG_INFINITY;
                }
                before += probabilities[id];
            }
        }
        Step::MinP => {
            let limit = f64::from(params.min_p) * probabilities[ranked[0]];
            for &id in ranked.iter().filter(|&&id| probabilities[id] < limit) {
                logits[id] = f64::NEG_INFINITY;
            }
        }
    }
}

/// The logits of sixteen tokens: all different, positive and negative.
fn logits() -> Vec<f32> {
    (0..16).map(|id| 2.6 * ((id * 7 + 3) as f32 * 0.83).sin() + 0.013 * id as f32).collect()
}

fn draws(params: &SamplingParams) -> Vec<usize> {
    let (logits, mut counts) = (logits(), vec![0; 16]);
    let mut sampler = Sampler::new(params, &PROMPT).unwrap();
    let mut scratch = logits.clone();
    for _ in 0..DRAWS {
        scratch.copy_from_slice(&logits);
        counts[sampler.sample(&mut scratch, &ANSWER) as usize] += 1;
    }
    counts
}

/// True if the counts fit the distribution by chi-square. 999 of 1000 correct samplers pass.
fn fits(counts: &[usize], probabilities: &[f64]) -> bool {
    let (mut chi_square, mut degrees) = (0.0, -1.0f64);
    for (&count, &p) in counts.iter().zip(probabilities) {
        if p == 0.0 {
            if count > 0 {
                return false;
            }
            continue;
        }
        let expected = p * DRAWS as f64;
        chi_square += (count as f64 - expected).powi(2) / expected;
        degrees += 1.0;
    }
    // The 99.9th percentile by the Wilson-Hilferty approximation.
    let degrees = degrees.max(1.0);
    let t = 2.0 / (9.0 * degrees);
    chi_square <= degrees * (1.0 - t + 3.09 * t.sqrt()).powi(3)
}

fn total_variation(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).sum::<f64>() / 2.0
}

/// Checks a setting. Returns the exchanges of neighbors that its draws reject.
fn check(name: &str, change: impl FnOnce(&mut SamplingParams)) -> Vec<(Step, Step)> {
    let mut params = SamplingParams { seed: Some(11), ..SamplingParams::default() };
    change(&mut params);
    let expected = distribution(&logits(), &params, &ORDER);
    let counts = draws(&params);
    assert!(fits(&counts, &expected), "{name}: {counts:?} of {expected:?}");
    let mut rejected = Vec::new();
    for i in 0..ORDER.len() - 1 {
        let mut order = ORDER;
        order.swap(i, i + 1);
        let other = distribution(&logits(), &params, &order);
        if total_variation(&expected, &other) > 0.01 {
            assert!(!fits(&counts, &other), "{name}: {:?} before {:?} is not rejected", order[i], order[i + 1]);
            rejected.push((ORDER[i], ORDER[i + 1]));
        }
    }
    rejected
}

#[test]
fn each_setting_fits_its_distribution() {
    check("the model's own", |_| {});
    check("low temperature", |p| p.temperature = 0.4);
    check("high temperature", |p| p.temperature = 1.7);
    check("top-k", |p| p.top_k = 5);
    check("top-p", |p| p.top_p = 0.83);
    check("min-p", |p| p.min_p = 0.2);
    check("repetition", |p| p.repetition_penalty = 1.3);
    check("rewarded repetition", |p| p.repetition_penalty = 0.8);
    check("presence", |p| p.presence_penalty = 1.1);
    check("frequency", |p| p.frequency_penalty = 0.7);
    check("rewarded frequency", |p| p.frequency_penalty = -0.4);
    check("bias", |p| p.logit_bias = vec![(2, 3.0), (6, -2.0), (3, 1.5), (2, -0.5)]);
    check("a ban", |p| p.logit_bias = vec![(1, -100.0)]);
}

#[test]
fn mixtures_follow_the_documented_order() {
    let mut rejected = Vec::new();
    let mut mixture = |name: &str, change: fn(&mut SamplingParams)| rejected.extend(check(name, change));
    mixture("bias, then repetition", |p| (p.logit_bias, p.repetition_penalty) = (vec![(0, -2.5), (8, 2.0)], 1.6));
    mixture("presence, then repetition", |p| (p.presence_penalty, p.repetition_penalty) = (1.6, 1.5));
    mixture("frequency, then repetition", |p| (p.frequency_penalty, p.repetition_penalty) = (0.9, 1.7));
    mixture("penalties, then temperature", |p| {
        (p.presence_penalty, p.frequency_penalty, p.repetition_penalty, p.temperature) = (0.6, 0.5, 1.2, 0.5);
    });
    mixture("temperature, then top-p", |p| (p.temperature, p.top_p) = (1.8, 0.7));
    mixture("temperature, then min-p", |p| (p.temperature, p.min_p) = (0.5, 0.15));
    mixture("top-k, then top-p", |p| (p.top_k, p.top_p) = (6, 0.72));
    mixture("top-k, then min-p", |p| (p.top_k, p.min_p) = (6, 0.3));
    mixture("top-p, then min-p", |p| (p.top_p, p.min_p) = (0.8, 0.2));
    mixture("all", |p| {
        (p.temperature, p.top_k, p.top_p, p.min_p) = (1.4, 9, 0.9, 0.12);
        (p.repetition_penalty, p.presence_penalty, p.frequency_penalty) = (1.4, 0.5, 0.3);
        p.logit_bias = vec![(8, 2.0), (4, 1.0)];
    });
    for neighbors in
        [(Step::PresenceAndFrequency, Step::Repetition), (Step::TopK, Step::TopP), (Step::TopP, Step::MinP)]
    {
        assert!(rejected.contains(&neighbors), "no mixture rejects an exchange of {neighbors:?}: {rejected:?}");
    }
}

#[test]
fn exchanges_of_distant_steps_are_rejected_too() {
    // Some neighbors commute, but not with steps further away: bias and repetition, temperature and the cuts.
    let pairs: [(Step, Step, fn(&mut SamplingParams)); 5] = [
        (Step::Bias, Step::Repetition, |p| (p.logit_bias, p.repetition_penalty) = (vec![(0, -2.5), (8, 2.0)], 1.6)),
        (Step::PresenceAndFrequency, Step::Temperature, |p| (p.presence_penalty, p.temperature) = (1.5, 0.5)),
        (Step::Temperature, Step::TopP, |p| (p.temperature, p.top_p) = (1.8, 0.7)),
        (Step::Temperature, Step::MinP, |p| (p.temperature, p.min_p) = (0.5, 0.15)),
        (Step::Repetition, Step::TopK, |p| (p.repetition_penalty, p.top_k) = (1.9, 4)),
    ];
    for (first, second, change) in pairs {
        let mut params = SamplingParams { seed: Some(13), ..SamplingParams::default() };
        change(&mut params);
        let counts = draws(&params);
        assert!(fits(&counts, &distribution(&logits(), &params, &ORDER)), "{params:?}");
        let mut order = ORDER;
        let place = |step: Step| ORDER.iter().position(|&other| other == step).unwrap();
        order.swap(place(first), place(second));
        assert!(!fits(&counts, &distribution(&logits(), &params, &order)), "{first:?} after {second:?}");
    }
}
