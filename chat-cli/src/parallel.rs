//! [`measure`]: many streams at once: tokens per second of all together, time to first token, and the longest gap between two
//! tokens of a stream. `chat-cli bench --parallel` prints its result.

use std::{
    cell::{Cell, RefCell},
    time::Instant,
};

use futures_util::future::join_all;
use infer_core::{Generation, SamplingParams, TokenEngine};
use serde_json::{Value, json};

use crate::{
    NumberTypes, Progress, Result, Setup, Weights,
    throughput::{token, warm_up},
};

/// The measurements to make: one for each number of streams.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Numbers of streams.
    pub streams: Vec<usize>,
    /// Tokens of each prompt.
    pub prompt: usize,
    /// Tokens that each stream decodes.
    pub decode: usize,
    /// Leading tokens that all prompts share.
    pub shared_prefix: usize,
    /// Tokens of one more prompt, which arrives when half of the tokens are decoded; 0: none.
    pub late_prompt: usize,
    /// Counted runs of each measurement, after one that is not counted.
    pub repetitions: usize,
}

/// One measurement.
#[derive(Debug, Clone, PartialEq)]
pub struct Test {
    /// Number of streams.
    pub streams: usize,
    /// Tokens of each prompt.
    pub prompt: usize,
    /// Leading tokens that all prompts share.
    pub shared_prefix: usize,
    /// Tokens that each stream decodes.
    pub decode: usize,
    /// Each counted run.
    pub runs: Vec<Run>,
}

/// One run of a measurement. Times are in seconds.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// From the arrival of all prompts to the first token of each stream, in rising order.
    pub first_tokens: Vec<f64>,
    /// The time in which all streams decode: from the last stream's first token to the first stream's end. If that covers less
    /// than a quarter of the tokens, to the end of all streams.
    pub decode_seconds: f64,
    /// Tokens of all streams in that time.
    pub decoded: usize,
    /// The longest time between two tokens of a stream, from the last stream's first token on.
    pub longest_gap: f64,
}

impl Test {
    /// Decoded tokens per second of all streams together: the mean of the runs.
    pub fn tokens_per_second(&self) -> f64 {
        self.mean(|run| run.decoded as f64 / run.decode_seconds)
    }

    /// The time to first token that this share of the streams meets: the mean of the runs.
    fn first_token(&self, share: f64) -> f64 {
        self.mean(|run| {
            let rank = (share * run.first_tokens.len() as f64).ceil() as usize;
            run.first_tokens[rank.clamp(1, run.first_tokens.len()) - 1]
        })
    }

    fn longest_gap(&self) -> f64 {
        self.runs.iter().map(|run| run.longest_gap).fold(0.0, f64::max)
    }

    fn mean(&self, of: impl Fn(&Run) -> f64) -> f64 {
        self.runs.iter().map(of).sum::<f64>() / self.runs.len() as f64
    }
}

/// Loads a model and makes the measurements of `plan`. Returns the device's name and the results.
pub async fn measure(
    weights: &Weights,
    setup: &Setup,
    types: NumberTypes,
    plan: &Plan,
    progress: &mut dyn Progress,
) -> Result<(String, Vec<Test>)> {
    let most = plan.streams.iter().max().copied().unwrap_or(1);
    let context = (plan.prompt + plan.decode).max(plan.late_prompt) + 1;
    // The late prompt needs the pages of one more conversation.
    let conversations = most + usize::from(plan.late_prompt > 0);
    let (mut model, device) = weights.load(setup, types, context, conversations, progress).await?;
    warm_up(&mut model, plan.prompt).await?;
    let engine = TokenEngine::new(model);
    let mut tests = Vec::new();
    for &streams in &plan.streams {
        progress.message(&format!("{streams} streams"));
        let mut runs = Vec::with_capacity(plan.repetitions);
        for i in 0..=plan.repetitions {
            let run = run(&engine, plan, streams).await?;
            if i > 0 {
                runs.push(run);
            }
        }
        let Plan { prompt, shared_prefix, decode, .. } = *plan;
        tests.push(Test { streams, prompt, shared_prefix, decode, runs });
    }
    Ok((device, tests))
}

/// One more prompt, which arrives while the streams decode.
struct Late<'a> {
    plan: &'a Plan,
    engine: &'a TokenEngine,
    /// Streams that have not decoded half of their tokens.
    waits_for: Cell<usize>,
    generation: RefCell<Option<Generation>>,
}

impl Late<'_> {
    /// Reports that a stream has decoded half of its tokens.
    fn half_done(&self, streams: usize) -> Result<()> {
        self.waits_for.set(self.waits_for.get() - 1);
        if self.plan.late_prompt > 0 && self.waits_for.get() == 0 {
            let params = SamplingParams { max_tokens: Some(1), ..SamplingParams::greedy() };
            let prompt = prompt(self.engine, self.plan.late_prompt, 0, streams);
            *self.generation.borrow_mut() = Some(self.engine.start(prompt, params)?);
        }
        Ok(())
    }
}

/// Pulls a stream to its end. Returns the time of each token.
async fn pull(mut generation: Generation, streams: usize, late: &Late<'_>) -> Result<Vec<Instant>> {
    let mut times = Vec::new();
    while let Some(chunk) = generation.next().await? {
        let now = Instant::now();
        for _ in chunk.tokens {
            times.push(now);
            if times.len() == late.plan.decode / 2 {
                late.half_done(streams)?;
            }
        }
    }
    Ok(times)
}

async fn run(engine: &TokenEngine, plan: &Plan, streams: usize) -> Result<Run> {
    engine.reset();
    let params = SamplingParams { max_tokens: Some(plan.decode), ..SamplingParams::greedy() };
    let late = Late { plan, engine, waits_for: Cell::new(streams), generation: RefCell::new(None) };
    let start = Instant::now();
    let mut all = Vec::with_capacity(streams);
    for i in 0..streams {
        let generation = engine.start(prompt(engine, plan.prompt, plan.shared_prefix, i), params.clone())?;
        all.push(pull(generation, streams, &late));
    }
    let times: Vec<Vec<Instant>> = join_all(all).await.into_iter().collect::<Result<_>>()?;
    let first_tokens: Vec<Instant> = times.iter().filter_map(|times| times.first().copied()).collect();
    let all_started = first_tokens.iter().max().copied().unwrap_or(start);
    let decoded_until = |end: Instant| -> usize {
        let is_inside = |time: &&Instant| **time > all_started && **time <= end;
        times.iter().map(|times| times.iter().filter(is_inside).count()).sum()
    };
    let ends = || times.iter().filter_map(|times| times.last()).copied();
    let first_end = ends().min().filter(|end| 4 * decoded_until(*end) >= streams * plan.decode);
    let end = first_end.or(ends().max()).unwrap_or(start);
    let gaps = times.iter().flat_map(|times| times.windows(2)).filter(|pair| pair[1] > all_started);
    let mut first_tokens: Vec<f64> = first_tokens.iter().map(|first| (*first - start).as_secs_f64()).collect();
    first_tokens.sort_by(f64::total_cmp);
    Ok(Run {
        first_tokens,
        decode_seconds: (end - all_started).as_secs_f64(),
        decoded: decoded_until(end),
        longest_gap: gaps.map(|pair| (pair[1] - pair[0]).as_secs_f64()).fold(0.0, f64::max),
    })
}

/// The prompt of stream `i`: different tokens for each stream after the shared prefix.
fn prompt(engine: &TokenEngine, len: usize, shared: usize, i: usize) -> Vec<u32> {
    let seed_at = |position: usize| if position < shared { 0 } else { i as u32 + 1 };
    (0..len).map(|position| token(position, seed_at(position), engine.config().vocab_size)).collect()
}

/// A table in Markdown.
pub fn markdown(model: &str, device: &str, tests: &[Test]) -> String {
    let mut out = String::from(
        "| model | device | streams | prompt | shared | decoded | t/s, all | t/s, each | first token p50, ms | p95, ms | longest gap, \
         ms |\n|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n",
    );
    for test in tests {
        let rate = test.tokens_per_second();
        out.push_str(&format!(
            "| {model} | {device} | {} | {} | {} | {} | {rate:.1} | {:.1} | {:.1} | {:.1} | {:.1} |\n",
            test.streams,
            test.prompt,
            test.shared_prefix,
            test.decode,
            rate / test.streams as f64,
            test.first_token(0.5) * 1e3,
            test.first_token(0.95) * 1e3,
            test.longest_gap() * 1e3,
        ));
    }
    out
}

/// An array with an object for each measurement, runs included. Times are in seconds.
pub fn json(model: &str, device: &str, tests: &[Test]) -> Value {
    let run = |run: &Run| {
        json!({
            "first_tokens": run.first_tokens, "decode_seconds": run.decode_seconds, "decoded": run.decoded,
            "longest_gap": run.longest_gap,
        })
    };
    let object = |test: &Test| {
        json!({
            "model": model, "device": device, "streams": test.streams, "prompt": test.prompt,
            "shared_prefix": test.shared_prefix, "decode": test.decode,
            "tokens_per_second": test.tokens_per_second(), "first_token_p50": test.first_token(0.5),
            "first_token_p95": test.first_token(0.95), "longest_gap": test.longest_gap(),
            "runs": test.runs.iter().map(run).collect::<Vec<_>>(),
        })
    };
    tests.iter().map(object).collect()
}
