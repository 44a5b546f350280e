//! Samples a token from logits by penalties, temperature, top-k, top-p and min-p. Only the id travels to the host, and the next token
//! can run before that.
//!
//! Four kernels share one shader:
//! - `sample_adjust` applies biases and penalties, turns logits into keys, and finds the best of each chunk of columns.
//! - `sample_select` finds the limits of top-k and of top-p, by radix selection: each level is a histogram of eight bits of the keys,
//!   with four levels per limit. Top-k counts keys. Top-p sums weights in fixed point, which is independent of the order.
//! - `sample_weigh` sums the weights of each chunk within the limits.
//! - `sample_draw` walks chunks, lanes and columns in order up to the random number, and writes the token.
//!
//! Weights are f32. A sampler in f64 draws another token if the random number is within about 1e-6 of the border between two tokens, or
//! if a sum of probabilities is as close to top-p.

mod cases;
mod reference;

use crate::{
    Gpu, Kernel, Result, Variant,
    gpu::{Buffer, Recorder},
    kernel::{Access, Params, Usage, params},
};

pub use reference::{draw, is_clear};

/// Rules of sampling.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rules {
    /// Divisor of the logits. 0: greedy.
    pub temperature: f32,
    /// Number of most likely tokens to keep. 0: all.
    pub top_k: usize,
    /// Share of the probability that remains after top-k: keep the most likely tokens that reach it.
    pub top_p: f32,
    /// Keep tokens with at least this fraction of the best token's probability.
    pub min_p: f32,
    /// Subtracted from the logit of each generated token.
    pub presence: f32,
    /// Subtracted from the logit of each generated token, once per occurrence.
    pub frequency: f32,
    /// For each token of the prompt and of the answer: divides its logit, or multiplies a negative one.
    pub repetition: f32,
}

/// History and bias of a token.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Past {
    /// Number of times that it was generated, plus [`IN_PROMPT`] if it is in the prompt.
    pub count: u32,
    /// Bias: added to its logit.
    pub bias: f32,
}

/// The bit of [`Past::count`] for tokens of the prompt.
pub const IN_PROMPT: u32 = 1 << 31;

/// Samples tokens from rows of `cols` logits.
pub struct Sample {
    cols: usize,
    rules: Rules,
    /// `[cols, 2]`. A single entry if there are neither biases nor penalties.
    history: Buffer<u32>,
    has_history: bool,
}

params! {
    struct SampleParams {
        cols: u32, chunks: u32, level: u32, first_level: u32, last_level: u32, top_k: u32, presence: f32, frequency: f32,
        repetition: f32, inverse_temperature: f32, top_p: f32, min_p: f32, random: f32,
    }
}

const WORKGROUP: usize = 256;
/// Columns of a lane.
const PER_LANE: usize = 8;
/// Columns of a chunk.
const SPAN: usize = WORKGROUP * PER_LANE;
/// Levels of the two searches.
const LEVELS: usize = 8;
/// Words of a level's histogram: a count and a weight in two words for each digit.
const HISTOGRAM_WORDS: usize = 3 * 256;
/// Words of the search's state. It is stored before each level and after the last one.
const STATE_WORDS: usize = 8;
const STATES: usize = LEVELS * HISTOGRAM_WORDS;
const LEVEL_WORDS: usize = STATES + (LEVELS + 1) * STATE_WORDS;

const READ: Access = Access::Read;
const WRITE: Access = Access::ReadWrite;

/// The record of one of the kernels.
const fn kernel(
    name: &'static str,
    bindings: &'static [Access],
    cases: fn(&crate::gpu::Caps, crate::CaseSet) -> Vec<crate::Case>,
) -> Kernel {
    Kernel {
        name,
        wgsl: include_str!("sample.wgsl"),
        bindings,
        params: SampleParams::LAYOUT,
        cases,
        usage: Usage::Answer,
        has_substitute: true,
        ..Kernel::DEFAULTS
    }
}

/// Applies biases and penalties, makes keys, and finds the best key of each chunk.
pub static ADJUST_KERNEL: Kernel = kernel("sample_adjust", &[READ, READ, WRITE, WRITE, WRITE], cases::adjust);
/// One level of the search for a limit.
pub static SELECT_KERNEL: Kernel = kernel("sample_select", &[READ, READ, WRITE], cases::select);
/// Sums the weights of each chunk.
pub static WEIGH_KERNEL: Kernel = kernel("sample_weigh", &[READ, READ, WRITE, WRITE], cases::weigh);
/// Draws the token.
pub static DRAW_KERNEL: Kernel = kernel("sample_draw", &[READ, READ, READ, READ, WRITE, WRITE], cases::draw);

impl Sample {
    /// The names of the kernels.
    pub const NAMES: [&str; 4] = [ADJUST_KERNEL.name, SELECT_KERNEL.name, WEIGH_KERNEL.name, DRAW_KERNEL.name];

    /// The longest row.
    pub const MOST_COLS: usize = SPAN * WORKGROUP;

    /// Samples from rows of `cols` logits. `history`: one entry per column; without it there are neither biases nor penalties.
    ///
    /// Errors: out of memory. Panics if a row is longer than [`Sample::MOST_COLS`].
    pub fn new(gpu: &Gpu, rules: Rules, cols: usize, history: Option<&[Past]>) -> Result<Sample> {
        assert!((1..=Sample::MOST_COLS).contains(&cols), "sample: {cols} columns");
        let words = |past: &Past| [past.count, past.bias.to_bits()];
        let words = history.map(|history| history.iter().flat_map(words).collect::<Vec<u32>>());
        assert!(words.as_ref().is_none_or(|words| words.len() == 2 * cols), "sample: one entry per column");
        let history = gpu.upload(words.as_deref().unwrap_or(&[0; 2]))?;
        Ok(Sample { cols, rules, history, has_history: words.is_some() })
    }

    /// Draws a token by a random number in 0..1. `x`: `[cols]`. `y`: `[1]`. The token is added to the history.
    pub fn record(&self, recorder: &mut Recorder, x: &Buffer<f32>, random: f64, y: &Buffer<u32>) {
        let chunks = self.cols.div_ceil(SPAN);
        let keys: Buffer<u32> = recorder.temporary(self.cols);
        let best: Buffer<u32> = recorder.temporary(2 * chunks);
        let levels: Buffer<u32> = recorder.temporary(LEVEL_WORDS);
        let sums: Buffer<f32> = recorder.temporary(2 * chunks);
        let is_greedy = self.rules.temperature == 0.0;
        let (has_k, has_p) = (self.rules.top_k > 0 && self.rules.top_k < self.cols, self.rules.top_p < 1.0);
        let (first, last) = match (has_k, has_p) {
            _ if is_greedy => (0, 0),
            (false, false) => (0, 0),
            (true, false) => (0, 4),
            (false, true) => (4, 8),
            (true, true) => (0, 8),
        };
        let params = |level: usize| SampleParams {
            cols: self.cols as u32,
            chunks: chunks as u32,
            level: level as u32,
            first_level: first as u32,
            last_level: last as u32,
            top_k: self.rules.top_k as u32,
            presence: self.rules.presence,
            frequency: self.rules.frequency,
            repetition: self.rules.repetition,
            // Keep the inverse of a tiny temperature finite.
            inverse_temperature: if is_greedy { 0.0 } else { (1.0 / self.rules.temperature).min(1e30) },
            top_p: self.rules.top_p,
            min_p: self.rules.min_p,
            // The largest f32 below 1.
            random: (random as f32).min(1.0 - f32::EPSILON / 2.0),
        };
        let adjust = adjust_variant(self.has_history);
        let buffers = [x.into(), (&self.history).into(), (&keys).into(), (&best).into(), (&levels).into()];
        recorder.dispatch(&ADJUST_KERNEL, &adjust, &params(0), &buffers, chunks);
        for level in first..last {
            let buffers = [(&keys).into(), (&best).into(), (&levels).into()];
            recorder.dispatch(&SELECT_KERNEL, &select_variant(), &params(level), &buffers, chunks);
        }
        if !is_greedy {
            let buffers = [(&keys).into(), (&best).into(), (&levels).into(), (&sums).into()];
            recorder.dispatch(&WEIGH_KERNEL, &weigh_variant(), &params(0), &buffers, chunks);
        }
        let draw = draw_variant(self.has_history);
        let (keys, best, levels, sums) = ((&keys).into(), (&best).into(), (&levels).into(), (&sums).into());
        let buffers = [keys, best, levels, sums, (&self.history).into(), y.into()];
        recorder.dispatch(&DRAW_KERNEL, &draw, &params(0), &buffers, 1);
    }
}

fn variant(step: &'static str) -> Variant {
    Variant::new()
        .flag(step)
        .constant_is("WORKGROUP", WORKGROUP as u32)
        .constant_is("PER_LANE", PER_LANE as u32)
        .constant_is("SPAN", SPAN as u32)
        .constant_is("HISTOGRAM_WORDS", HISTOGRAM_WORDS as u32)
        .constant_is("STATE_WORDS", STATE_WORDS as u32)
        .constant_is("STATES", STATES as u32)
        .constant_is("LEVEL_WORDS", LEVEL_WORDS as u32)
}

fn adjust_variant(has_history: bool) -> Variant {
    variant("ADJUST").flag_if("PENALTIES", has_history)
}

fn select_variant() -> Variant {
    variant("SELECT").flag("RESOLVES")
}

fn weigh_variant() -> Variant {
    variant("WEIGH").flag("RESOLVES")
}

fn draw_variant(has_history: bool) -> Variant {
    variant("DRAW").flag_if("PENALTIES", has_history)
}
