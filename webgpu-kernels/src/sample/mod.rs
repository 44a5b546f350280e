//! Samples tokens from rows of logits by penalties, temperature, top-k, top-p and min-p, each row by its own rules. Only the ids travel to
//! the host, and the next tokens can run before that.
//!
//! Five kernels share pieces/. [`SampleRows`] (rows.rs) dispatches them:
//! - `sample_adjust` applies biases and penalties, turns logits into keys, and finds the best of each chunk of columns.
//! - `sample_select` finds the limits of top-k and of top-p, by radix selection: each level is a histogram of eight bits of the keys,
//!   with four levels per limit. Top-k counts keys. Top-p sums weights in fixed point, which is independent of the order.
//! - `sample_weigh` sums the weights of each chunk within the limits.
//! - `sample_draw` walks chunks, lanes and columns in order up to the random number, and writes the token.
//! - `sample_count` adds the token to the history of its row.
//!
//! Weights are f32. A sampler in f64 draws another token if the random number is within about 1e-6 of the border between two tokens, or
//! if a sum of probabilities is as close to top-p.

mod cases;
mod reference;
mod rows;
#[cfg(all(test, not(target_arch = "wasm32")))]
mod tests;

use crate::{
    Gpu, Kernel, Result, Variant,
    gpu::{Buffer, Recorder},
    kernel::{Access, Params, Usage, params},
};

pub use reference::{draw, is_clear};
pub use rows::{SampleRow, SampleRows};

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

/// The sampler of a row of `cols` logits on the device: its rules, and the history of its tokens.
pub struct Sample {
    cols: usize,
    rules: Rules,
    /// `[cols, 2]`. `None`: neither biases nor penalties.
    history: Option<Buffer<u32>>,
}

params! { struct SampleParams { groups: u32, first_row: u32, cols: u32, chunks: u32, level: u32 } }

params! { struct CountParams { row: u32 } }

const WORKGROUP: usize = 256;
/// Columns of a lane.
const PER_LANE: usize = 8;
/// Columns of a chunk.
const SPAN: usize = WORKGROUP * PER_LANE;
/// Levels of the two searches.
const LEVELS: usize = 8;
/// Words of a level's histogram: a count and a weight in two words for each digit.
const HISTOGRAM_WORDS: usize = 3 * 256;
/// Words of the search's state in a row. It is stored before each level and after the last one.
const STATE_WORDS: usize = 8;
const STATES: usize = LEVELS * HISTOGRAM_WORDS;
const LEVEL_WORDS: usize = STATES + (LEVELS + 1) * STATE_WORDS;

const READ: Access = Access::Read;
const WRITE: Access = Access::ReadWrite;

/// The fields that the kernels share.
const SHARED: Kernel = Kernel { usage: Usage::Answer, has_substitute: true, ..Kernel::DEFAULTS };

/// Applies biases and penalties, makes keys, and finds the best key of each chunk.
pub static ADJUST_KERNEL: Kernel = Kernel {
    name: "sample_adjust",
    wgsl: include_str!("adjust.wgsl"),
    bindings: &[READ, READ, READ, WRITE, WRITE, WRITE],
    params: SampleParams::LAYOUT,
    cases: cases::adjust,
    ..SHARED
};

/// One level of the search for a limit.
pub static SELECT_KERNEL: Kernel = Kernel {
    name: "sample_select",
    wgsl: include_str!("select.wgsl"),
    bindings: &[READ, READ, READ, WRITE],
    params: SampleParams::LAYOUT,
    cases: cases::select,
    ..SHARED
};

/// Sums the weights of each chunk.
pub static WEIGH_KERNEL: Kernel = Kernel {
    name: "sample_weigh",
    wgsl: include_str!("weigh.wgsl"),
    bindings: &[READ, READ, READ, WRITE, WRITE],
    params: SampleParams::LAYOUT,
    cases: cases::weigh,
    ..SHARED
};

/// Draws the tokens.
pub static DRAW_KERNEL: Kernel = Kernel {
    name: "sample_draw",
    wgsl: include_str!("draw.wgsl"),
    bindings: &[READ, READ, READ, READ, READ, WRITE],
    params: SampleParams::LAYOUT,
    cases: cases::draw,
    ..SHARED
};

/// Adds a token to a history.
pub static COUNT_KERNEL: Kernel = Kernel {
    name: "sample_count",
    wgsl: include_str!("count.wgsl"),
    bindings: &[READ, WRITE],
    params: CountParams::LAYOUT,
    cases: cases::count,
    ..SHARED
};

impl Sample {
    /// The names of the kernels.
    pub const NAMES: [&str; 5] =
        [ADJUST_KERNEL.name, SELECT_KERNEL.name, WEIGH_KERNEL.name, DRAW_KERNEL.name, COUNT_KERNEL.name];

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
        let history = words.map(|words| gpu.upload(&words)).transpose()?;
        Ok(Sample { cols, rules, history })
    }

    /// Draws a token by a random number in 0..1: [`SampleRows`] of one row. `x`: `[cols]`. `y`: `[1]`. The token is added to the history.
    pub fn record(&self, recorder: &mut Recorder, x: &Buffer<f32>, random: f64, y: &Buffer<u32>) {
        let rows = [SampleRow { with: Some(self), random }];
        SampleRows { cols: self.cols, rows: &rows }.record(recorder, x, y);
    }
}

fn variant() -> Variant {
    Variant::new()
        .constant_is("WORKGROUP", WORKGROUP as u32)
        .constant_is("PER_LANE", PER_LANE as u32)
        .constant_is("SPAN", SPAN as u32)
        .constant_is("HISTOGRAM_WORDS", HISTOGRAM_WORDS as u32)
        .constant_is("STATE_WORDS", STATE_WORDS as u32)
        .constant_is("STATES", STATES as u32)
        .constant_is("LEVEL_WORDS", LEVEL_WORDS as u32)
}

fn adjust_variant(has_history: bool) -> Variant {
    variant().flag_if("PENALTIES", has_history)
}

fn count_variant() -> Variant {
    Variant::new().constant_is("WORKGROUP", 1)
}
