//! [`Sampler`]: chooses the next token from logits, by penalties, temperature, top-k, top-p, min-p, and a seeded generator.
//!
//! This is the specification: `webgpu_kernels::sample` implements the same rules on the device. The result depends only on the
//! logits, the parameters, the tokens so far and the state of the generator. Sums are in f64, in the order of the ids.

use std::collections::{HashMap, HashSet, VecDeque};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{logprobs::MOST_LOGPROBS, prompt_lookup::MOST_GUESSED};
use crate::{
    Error, Result,
    ops::{IN_PROMPT, Past, Rules},
};

/// Rules for the choice of the next token, and for the end of an answer.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits. 0 always chooses the most likely token (the lowest id among equals).
    pub temperature: f32,
    /// Keeps the fewest most likely tokens whose probabilities sum to at least this. 1 keeps all.
    pub top_p: f32,
    /// Keeps the `top_k` most likely tokens. 0 keeps all.
    pub top_k: usize,
    /// Keeps tokens with at least this fraction of the best token's probability. 0 keeps all.
    pub min_p: f32,
    /// Divides positive logits, and multiplies negative ones, of tokens in prompt or answer. 1 changes nothing.
    pub repetition_penalty: f32,
    /// Subtracted from the logit of each token in the answer.
    pub presence_penalty: f32,
    /// Subtracted from the logit of each token in the answer, times its number of occurrences.
    pub frequency_penalty: f32,
    /// Seed of the generator. `None`: a random seed.
    pub seed: Option<u64>,
    /// Limit of the answer in tokens. `None`: until the context is full.
    pub max_tokens: Option<usize>,
    /// Strings that end the answer, in addition to the model's own.
    pub stop: Vec<String>,
    /// Added to the logits of these ids, from -100 to 100.
    pub logit_bias: Vec<(u32, f32)>,
    /// Returns the log-probability of each token, and of this number (at most 20) of the most likely alternatives. They are
    /// from the model's own distribution, before temperature, penalties and cuts.
    pub logprobs: Option<usize>,
    /// If true, a full context drops its oldest tokens except the first few, and the answer continues. If false, the answer
    /// ends.
    pub shift: bool,
    /// Prompt-lookup decoding: guesses up to this number of tokens (at most [`MOST_GUESSED`]) from earlier text, and checks them
    /// in one pass. Not for answers with penalties, biases or log-probabilities. 0 disables it.
    pub prompt_lookup: usize,
}

impl Default for SamplingParams {
    /// The model's own distribution.
    fn default() -> SamplingParams {
        SamplingParams {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            seed: None,
            max_tokens: None,
            stop: Vec::new(),
            logit_bias: Vec::new(),
            logprobs: None,
            shift: false,
            prompt_lookup: 0,
        }
    }
}

impl SamplingParams {
    /// Always the most likely token.
    pub fn greedy() -> SamplingParams {
        SamplingParams { temperature: 0.0, ..SamplingParams::default() }
    }

    /// True if the next token is always the most likely one of the unchanged logits.
    pub fn is_plain_greedy(&self) -> bool {
        self.temperature == 0.0 && !self.has_penalties() && self.logit_bias.is_empty() && self.logprobs.is_none()
    }

    /// True if prompt lookup is on and possible: the tokens before a guess change no rule for the tokens after it.
    pub fn may_guess(&self) -> bool {
        self.prompt_lookup > 0 && !self.has_penalties() && self.logit_bias.is_empty() && self.logprobs.is_none()
    }

    fn has_penalties(&self) -> bool {
        (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1.0, 0.0, 0.0)
    }

    /// Checks the range of every parameter. NaN and infinity are out of range.
    ///
    /// Errors: [`Error::BadParameter`].
    pub fn validate(&self) -> Result<()> {
        let check = |name, value: f32, holds: bool, expected| match holds && value.is_finite() {
            true => Ok(()),
            false => Err(Error::BadParameter { name, expected, found: value.to_string() }),
        };
        check("temperature", self.temperature, self.temperature >= 0.0, "0 or more")?;
        check("top_p", self.top_p, self.top_p > 0.0 && self.top_p <= 1.0, "above 0 and at most 1")?;
        check("min_p", self.min_p, (0.0..=1.0).contains(&self.min_p), "from 0 to 1")?;
        check("repetition_penalty", self.repetition_penalty, self.repetition_penalty > 0.0, "above 0")?;
        let within = |v: f32| (-2.0..=2.0).contains(&v);
        check("presence_penalty", self.presence_penalty, within(self.presence_penalty), "from -2 to 2")?;
        check("frequency_penalty", self.frequency_penalty, within(self.frequency_penalty), "from -2 to 2")?;
        for (_, bias) in &self.logit_bias {
            check("logit_bias", *bias, (-100.0..=100.0).contains(bias), "from -100 to 100")?;
        }
        if let Some(top) = self.logprobs.filter(|top| *top > MOST_LOGPROBS) {
            return Err(Error::BadParameter { name: "logprobs", expected: "at most 20", found: top.to_string() });
        }
        if self.prompt_lookup > MOST_GUESSED {
            let found = self.prompt_lookup.to_string();
            return Err(Error::BadParameter { name: "prompt_lookup", expected: "from 0 to 7", found });
        }
        if self.max_tokens == Some(0) {
            return Err(Error::BadParameter { name: "max_tokens", expected: "1 or more", found: "0".into() });
        }
        if self.stop.iter().any(String::is_empty) {
            return Err(Error::BadParameter { name: "stop", expected: "non-empty strings", found: "\"\"".into() });
        }
        Ok(())
    }
}

/// Chooses the tokens of one answer.
#[derive(Debug, Clone)]
pub struct Sampler {
    params: SamplingParams,
    prompt: HashSet<u32>,
    rng: ChaCha8Rng,
    /// Random numbers of the next tokens, drawn ahead.
    randoms: VecDeque<f64>,
}

impl Sampler {
    /// A sampler for the answer to `prompt`. The ids of `prompt` count for the repetition penalty.
    ///
    /// Errors: [`Error::BadParameter`].
    pub fn new(params: &SamplingParams, prompt: &[u32]) -> Result<Sampler> {
        params.validate()?;
        let seed = params.seed.unwrap_or_else(rand::random);
        let prompt = match params.repetition_penalty == 1.0 {
            true => HashSet::new(),
            false => prompt.iter().copied().collect(),
        };
        Ok(Sampler { params: params.clone(), prompt, rng: ChaCha8Rng::seed_from_u64(seed), randoms: VecDeque::new() })
    }

    /// Chooses the next token from `logits` `[vocab_size]`. `generated` are the tokens of the answer so far, without the prompt.
    /// Applies the penalties to `logits` in place. NaN counts as minus infinity; if every logit is minus infinity, the lowest id
    /// is chosen.
    pub fn sample(&mut self, logits: &mut [f32], generated: &[u32]) -> u32 {
        assert!(!logits.is_empty(), "sample: no logits");
        self.penalize(logits, generated);
        for logit in logits.iter_mut().filter(|logit| logit.is_nan()) {
            *logit = f32::NEG_INFINITY;
        }
        let best = argmax(logits);
        if self.params.temperature == 0.0 || !logits[best].is_finite() {
            return best as u32;
        }
        let candidates = self.candidates(logits, logits[best]);
        let total: f64 = candidates.iter().map(|c| c.weight).sum();
        let mut left = self.random(0) * total;
        self.advance();
        for candidate in &candidates {
            left -= candidate.weight;
            if left < 0.0 {
                return candidate.id;
            }
        }
        // Rounding moved the draw beyond the end: choose the last candidate with a positive weight.
        candidates.iter().rev().find(|c| c.weight > 0.0).map_or(best as u32, |c| c.id)
    }

    /// The random number of a future token. Index 0 is the next token.
    pub fn random(&mut self, index: usize) -> f64 {
        while self.randoms.len() <= index {
            self.randoms.push_back(self.rng.random());
        }
        self.randoms[index]
    }

    /// Discards the random number of the next token, after the token was drawn.
    pub fn advance(&mut self) {
        self.randoms.pop_front();
    }

    /// The rules, for sampling on a device. The device rounds weights to f32: if a random number is within about 1e-6 of the
    /// border between two tokens, it may choose the other one.
    pub fn rules(&self) -> Rules {
        let SamplingParams { temperature, top_k, top_p, min_p, .. } = self.params;
        let SamplingParams { presence_penalty: presence, frequency_penalty: frequency, .. } = self.params;
        Rules { temperature, top_k, top_p, min_p, presence, frequency, repetition: self.params.repetition_penalty }
    }

    /// Occurrences and bias of each token, for sampling on a device. `None` without biases and penalties.
    pub fn history(&self, vocab_size: usize, generated: &[u32]) -> Option<Vec<Past>> {
        if !self.params.has_penalties() && self.params.logit_bias.is_empty() {
            return None;
        }
        let mut history = vec![Past::default(); vocab_size];
        for (id, bias) in &self.params.logit_bias {
            if let Some(past) = history.get_mut(*id as usize) {
                past.bias += bias;
            }
        }
        for id in generated {
            if let Some(past) = history.get_mut(*id as usize) {
                past.count += 1;
            }
        }
        for id in &self.prompt {
            if let Some(past) = history.get_mut(*id as usize) {
                past.count |= IN_PROMPT;
            }
        }
        Some(history)
    }

    /// Applies `l += bias`, `l -= presence + count * frequency`, then `l = l < 0 ? l * repetition : l / repetition`.
    fn penalize(&self, logits: &mut [f32], generated: &[u32]) {
        for (id, bias) in &self.params.logit_bias {
            if let Some(logit) = logits.get_mut(*id as usize) {
                *logit += bias;
            }
        }
        if !self.params.has_penalties() {
            return;
        }
        let SamplingParams { repetition_penalty, presence_penalty, frequency_penalty, .. } = self.params;
        let mut counts: HashMap<u32, u32> = HashMap::new();
        for id in generated {
            *counts.entry(*id).or_default() += 1;
        }
        for (id, count) in &counts {
            if let Some(logit) = logits.get_mut(*id as usize) {
                *logit -= presence_penalty + *count as f32 * frequency_penalty;
            }
        }
        if repetition_penalty == 1.0 {
            return;
        }
        let answer_only = counts.keys().filter(|id| !self.prompt.contains(id));
        for id in self.prompt.iter().chain(answer_only) {
            if let Some(logit) = logits.get_mut(*id as usize) {
                *logit = if *logit < 0.0 { *logit * repetition_penalty } else { *logit / repetition_penalty };
            }
        }
    }

    /// The tokens that may be drawn, by rising id. A weight is the probability divided by the best token's.
    fn candidates(&self, logits: &[f32], best: f32) -> Vec<Candidate> {
        let temperature = f64::from(self.params.temperature);
        let weight = |logit: f32| ((f64::from(logit) - f64::from(best)) / temperature).exp();
        let mut candidates: Vec<Candidate> =
            logits.iter().zip(0..).map(|(logit, id)| Candidate { id, weight: weight(*logit) }).collect();
        if self.params.top_k > 0 && self.params.top_k < candidates.len() {
            candidates.select_nth_unstable_by(self.params.top_k - 1, Candidate::likelier);
            candidates.truncate(self.params.top_k);
        }
        if self.params.top_p < 1.0 {
            keep_top_p(&mut candidates, f64::from(self.params.top_p));
        }
        // The best token has weight 1, so min_p itself is the limit, regardless of earlier cuts.
        let min_p = f64::from(self.params.min_p);
        candidates.retain(|c| c.weight >= min_p);
        candidates.sort_unstable_by_key(|c| c.id);
        candidates
    }
}

#[derive(Debug, Clone, Copy)]
struct Candidate {
    id: u32,
    weight: f64,
}

impl Candidate {
    /// Orders by falling weight, then by rising id, so that the order is total.
    fn likelier(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
        b.weight.total_cmp(&a.weight).then(a.id.cmp(&b.id))
    }
}

/// Keeps the fewest most likely candidates whose probabilities sum to at least `top_p`.
fn keep_top_p(candidates: &mut Vec<Candidate>, top_p: f64) {
    // Sum in the order of the ids, so that top-k's partial sort does not change the last bit.
    candidates.sort_unstable_by_key(|c| c.id);
    let wanted = top_p * candidates.iter().map(|c| c.weight).sum::<f64>();
    // Few of many candidates are kept, so sort in steps of growing size until the sum is reached.
    let mut sorted = 0;
    let mut sum = 0.0;
    let mut step = 128;
    while sorted < candidates.len() {
        let rest = &mut candidates[sorted..];
        let next = step.min(rest.len());
        if next < rest.len() {
            rest.select_nth_unstable_by(next - 1, Candidate::likelier);
        }
        rest[..next].sort_unstable_by(Candidate::likelier);
        for (i, candidate) in rest[..next].iter().enumerate() {
            sum += candidate.weight;
            if sum >= wanted {
                candidates.truncate(sorted + i + 1);
                return;
            }
        }
        sorted += next;
        step *= 8;
    }
}

/// The index of the largest logit, the lowest among equals.
fn argmax(logits: &[f32]) -> usize {
    let mut best = 0;
    for (i, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = i;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const INF: f32 = f32::INFINITY;

    fn params(change: impl FnOnce(&mut SamplingParams)) -> SamplingParams {
        let mut params = SamplingParams { seed: Some(7), ..SamplingParams::default() };
        change(&mut params);
        params
    }

    fn sample(params: &SamplingParams, logits: &[f32], prompt: &[u32], generated: &[u32]) -> u32 {
        Sampler::new(params, prompt).unwrap().sample(&mut logits.to_vec(), generated)
    }

    /// Compares the frequencies of many draws with the probabilities by chi-square. 99.9 % of correct samplers pass; the seed is
    /// fixed.
    fn check_distribution(params: &SamplingParams, logits: &[f32], probabilities: &[f64]) {
        const DRAWS: usize = 100_000;
        let mut sampler = Sampler::new(params, &[]).unwrap();
        let mut counts = vec![0usize; logits.len()];
        for _ in 0..DRAWS {
            counts[sampler.sample(&mut logits.to_vec(), &[]) as usize] += 1;
        }
        assert!((probabilities.iter().sum::<f64>() - 1.0).abs() < 1e-6);
        let mut chi_square = 0.0;
        let mut degrees = -1.0;
        for (count, p) in counts.iter().zip(probabilities) {
            if *p == 0.0 {
                assert_eq!(*count, 0, "{counts:?} of {probabilities:?}");
                continue;
            }
            let expected = p * DRAWS as f64;
            chi_square += (*count as f64 - expected).powi(2) / expected;
            degrees += 1.0;
        }
        // The 99.9th percentile by the Wilson-Hilferty approximation.
        let t = 2.0 / (9.0 * f64::max(degrees, 1.0));
        let limit = f64::max(degrees, 1.0) * (1.0 - t + 3.09 * t.sqrt()).powi(3);
        assert!(chi_square <= limit, "chi-square {chi_square} above {limit}: {counts:?} of {probabilities:?}");
    }

    fn normalized(weights: &[f64]) -> Vec<f64> {
        let sum: f64 = weights.iter().sum();
        weights.iter().map(|w| w / sum).collect()
    }

    #[test]
    fn draws_follow_the_models_distribution() {
        let p = [0.5, 0.25, 0.125, 0.0625, 0.0625];
        let logits = p.map(|p: f64| p.ln() as f32 + 3.0);
        check_distribution(&params(|_| {}), &logits, &p);
        check_distribution(&params(|p| p.temperature = 0.5), &logits, &normalized(&p.map(|p| p * p)));
        check_distribution(&params(|p| p.temperature = 2.0), &logits, &normalized(&p.map(f64::sqrt)));
    }

    #[test]
    fn top_k_top_p_and_min_p_cut_the_tail() {
        let p = [0.0625, 0.5, 0.125, 0.25, 0.0625];
        let logits = p.map(|p: f64| p.ln() as f32);
        let two = normalized(&[0.0, 0.5, 0.0, 0.25, 0.0]);
        check_distribution(&params(|p| p.top_k = 2), &logits, &two);
        check_distribution(&params(|p| p.top_p = 0.7), &logits, &two);
        check_distribution(&params(|p| p.min_p = 0.4), &logits, &two);
        let three = normalized(&[0.0, 0.5, 0.125, 0.25, 0.0]);
        check_distribution(&params(|p| p.top_p = 0.8), &logits, &three);
        // top_p is relative to the tokens that top_k kept: 0.5 of 0.75 is more than 0.6.
        let one = [0.0, 1.0, 0.0, 0.0, 0.0];
        check_distribution(&params(|p| (p.top_k, p.top_p) = (2, 0.6)), &logits, &one);
        // Among equals, the lower id is kept.
        check_distribution(&params(|p| p.top_k = 4), &logits, &normalized(&[0.0625, 0.5, 0.125, 0.25, 0.0]));
    }

    #[test]
    fn top_p_is_right_in_a_large_vocabulary() {
        // The distribution is so flat that the cut is far beyond the first sorted step.
        let logits: Vec<f32> = (0..5000).map(|i| ((i * 7919) % 5000) as f32 * -0.001).collect();
        let mut order: Vec<usize> = (0..5000).collect();
        order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
        let total: f64 = logits.iter().map(|l| f64::from(*l).exp()).sum();
        let mut sum = 0.0;
        let kept = 1 + order
            .iter()
            .take_while(|i| {
                sum += f64::from(logits[**i]).exp();
                sum < 0.6 * total
            })
            .count();
        let sampler = Sampler::new(&params(|p| p.top_p = 0.6), &[]).unwrap();
        let found: Vec<usize> = sampler.candidates(&logits, 0.0).iter().map(|c| c.id as usize).collect();
        let mut expected = order[..kept].to_vec();
        expected.sort_unstable();
        assert!(kept > 600);
        assert_eq!(found, expected);
    }

    #[test]
    fn edge_cases() {
        let greedy = SamplingParams::greedy();
        assert!(greedy.is_plain_greedy());
        assert_eq!(sample(&greedy, &[1.0, 3.0, 3.0, 2.0], &[], &[]), 1);
        assert_eq!(sample(&greedy, &[f32::NAN, -INF, -5.0], &[], &[]), 2);
        assert_eq!(sample(&greedy, &[-INF, f32::NAN], &[], &[]), 0);
        for p in [params(|_| {}), params(|p| p.top_p = 1e-6), params(|p| p.top_k = 1), params(|p| p.min_p = 1.0)] {
            assert_eq!(sample(&p, &[-INF, -INF, -1e30, -INF], &[], &[]), 2);
            assert_eq!(sample(&p, &[-INF, -INF], &[], &[]), 0);
            assert_eq!(sample(&p, &[f32::NAN, 1e30, -1e30], &[], &[]), 1);
            assert_eq!(sample(&p, &[5.0], &[], &[]), 0);
        }
        assert_eq!(sample(&params(|p| p.top_p = 1e-6), &[1.0, 2.0, 2.0], &[], &[]), 1);
        assert_eq!(sample(&params(|p| p.top_k = 1), &[2.0, 1.0, 2.0], &[], &[]), 0);
        assert_eq!(sample(&params(|p| p.temperature = 1e-30), &[2.0, 2.000_001, 1.0], &[], &[]), 1);
        assert_eq!(sample(&params(|p| p.top_k = 99), &[-INF, 1.0], &[], &[]), 1);
    }

    #[test]
    fn penalties_change_the_logits_in_the_documented_order() {
        let p = params(|p| (p.repetition_penalty, p.presence_penalty, p.frequency_penalty) = (2.0, 0.5, 0.25));
        let mut logits = [4.0, 4.0, -4.0, 0.5, 4.0];
        // Token 0 is in the prompt, 1 twice in the answer, 2 in both, 3 once in the answer; 9 is beyond the vocabulary.
        Sampler::new(&p, &[0, 2, 9]).unwrap().sample(&mut logits, &[1, 2, 3, 1, 9]);
        assert_eq!(logits, [2.0, 1.5, -9.5, -0.5, 4.0]);
        assert!(!SamplingParams { presence_penalty: 0.1, ..SamplingParams::greedy() }.is_plain_greedy());
    }

    #[test]
    fn the_same_seed_gives_the_same_tokens() {
        let logits: Vec<f32> = (0..100).map(|i| (i as f32 * 0.7).sin() * 3.0).collect();
        let draw = |seed: u64| -> Vec<u32> {
            let mut sampler = Sampler::new(&params(|p| p.seed = Some(seed)), &[]).unwrap();
            (0..8).map(|_| sampler.sample(&mut logits.clone(), &[])).collect()
        };
        assert_eq!(draw(42), draw(42));
        assert_ne!(draw(42), draw(43));
        // Recorded. If this changes, users get other answers for the same seed.
        assert_eq!(draw(42), [65, 92, 39, 57, 28, 12, 29, 75]);
    }

    #[test]
    fn ranges_are_checked() {
        assert!(SamplingParams::default().validate().is_ok());
        let bad: [fn(&mut SamplingParams); 17] = [
            |p| p.prompt_lookup = 8,
            |p| p.temperature = -0.1,
            |p| p.temperature = f32::NAN,
            |p| p.temperature = INF,
            |p| p.top_p = 0.0,
            |p| p.top_p = 1.1,
            |p| p.top_p = f32::NAN,
            |p| p.min_p = -0.1,
            |p| p.min_p = 1.1,
            |p| p.min_p = f32::NAN,
            |p| p.repetition_penalty = 0.0,
            |p| p.repetition_penalty = f32::NAN,
            |p| p.presence_penalty = 2.1,
            |p| p.frequency_penalty = -2.1,
            |p| p.frequency_penalty = f32::NAN,
            |p| p.max_tokens = Some(0),
            |p| p.stop = vec![String::new()],
        ];
        for change in bad {
            let error = Sampler::new(&params(change), &[]).unwrap_err().to_string();
            assert!(error.contains("must be"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn drawn_tokens_satisfy_every_rule(
            logits in prop::collection::vec(prop_oneof![-30f32..30.0, Just(-INF), Just(f32::NAN)], 1..200),
            temperature in prop_oneof![Just(0.0f32), 0.01f32..3.0],
            top_k in 0usize..20, top_p in 0.01f32..=1.0, min_p in 0f32..=1.0, seed: u64,
        ) {
            let p = SamplingParams { temperature, top_k, top_p, min_p, seed: Some(seed), ..SamplingParams::default() };
            let id = sample(&p, &logits, &[], &[]) as usize;
            prop_assert!(id < logits.len());
            let clean: Vec<f32> = logits.iter().map(|l| if l.is_nan() { -INF } else { *l }).collect();
            let best = clean.iter().copied().fold(-INF, f32::max);
            if best > -INF {
                prop_assert!(clean[id] > -INF);
                let better = clean.iter().filter(|l| **l > clean[id]).count();
                prop_assert!(top_k == 0 || better < top_k);
                if temperature == 0.0 {
                    prop_assert_eq!(better, 0);
                } else {
                    let odds = (f64::from(clean[id] - best) / f64::from(temperature)).exp();
                    prop_assert!(odds >= f64::from(min_p) * 0.999_999);
                }
            }
            prop_assert_eq!(sample(&p, &logits, &[], &[]) as usize, id);
        }
    }
}
