//! [`measure`]: prefill and decode of a model in tokens per second. `chat-cli bench` and `cargo bench --bench throughput`
//! print its result through [`bench_report`](crate::bench_report).

use std::time::{Duration, Instant};

use infer_core::{LoadedModel, ops::candle::CpuWeights};
use model_format::params;

use crate::{
    NumberTypes, Progress, Result, Setup, Weights,
    bench_report::{Roofline, Subject, Test},
};

/// The measurements to make: every prompt length and every decoded length at every depth.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Prompt lengths to prefill, in tokens; 0 is skipped.
    pub prompt: Vec<usize>,
    /// Tokens to decode; 0 is skipped.
    pub decode: Vec<usize>,
    /// Tokens in the cache before each run.
    pub depth: Vec<usize>,
    /// Counted runs of each measurement, after one that is not counted.
    pub repetitions: usize,
    /// True to measure each kernel of a decoded token too.
    pub roofline: bool,
}

/// A GPU reaches its full clock after about a second of work.
const WARM_UP: Duration = Duration::from_millis(1500);

/// Loads a model and makes the measurements of `plan`. `name` is the model's name in reports.
pub async fn measure(
    name: String,
    weights: &Weights,
    setup: &Setup,
    types: NumberTypes,
    plan: &Plan,
    progress: &mut dyn Progress,
) -> Result<(Subject, Vec<Test>)> {
    let longest = plan.prompt.iter().chain(&plan.decode).max().copied().unwrap_or(0);
    let context = plan.depth.iter().max().copied().unwrap_or(0) + longest + 1;
    let start = Instant::now();
    let (mut model, device) = weights.load(setup, types, context, 1, progress).await?;
    let load_seconds = start.elapsed().as_secs_f64();
    model.most_likely(&[1]).await?;
    let first_token_seconds = start.elapsed().as_secs_f64();
    warm_up(&mut model, longest).await?;
    let copy_bandwidth = match model.gpu().filter(|_| plan.roofline) {
        Some(gpu) => Some(gpu.copy_bandwidth().await.map_err(infer_core::Error::from)?),
        None => None,
    };
    let subject = subject(name, &model, device, types, [load_seconds, first_token_seconds]);
    let mut tests = Vec::new();
    for &depth in &plan.depth {
        for &len in plan.prompt.iter().filter(|&&len| len > 0) {
            progress.message(&format!("pp{len} @ d{depth}"));
            tests.push(prefill(&mut model, depth, len, plan.repetitions).await?);
        }
        for &count in plan.decode.iter().filter(|&&count| count > 0) {
            progress.message(&format!("tg{count} @ d{depth}"));
            let mut test = decode(&mut model, depth, count, plan.repetitions).await?;
            if let Some(copy_bandwidth) = copy_bandwidth {
                model.truncate(depth);
                test.roofline = model.profile().await?.map(|profile| Roofline {
                    token_seconds: test.token_seconds(),
                    copy_bandwidth,
                    profile,
                });
            }
            tests.push(test);
        }
    }
    if let Some(notice) = model.take_notice() {
        progress.message(&format!("warning: {notice}"));
    }
    if plan.roofline && copy_bandwidth.is_none() {
        progress.message("warning: there is no roofline of the CPU");
    }
    Ok((subject, tests))
}

fn subject(name: String, model: &LoadedModel, device: String, types: NumberTypes, seconds: [f64; 2]) -> Subject {
    let summary = model.gpu().map(|gpu| gpu.summary().clone());
    let products = match types.cpu_weights {
        CpuWeights::Exact => "products in f32",
        CpuWeights::Integer => "products of codes in integers",
    };
    let [load_seconds, first_token_seconds] = seconds;
    Subject {
        model: name,
        parameters: params(model.config()).iter().map(|param| param.shape.iter().product::<usize>()).sum(),
        bytes: summary.as_ref().map(|_| model.need().weights),
        bytes_per_token: summary.as_ref().map(|_| model.need().weights_per_token),
        device: summary.map_or([device, "candle".into(), products.into()], |s| [s.name, s.backend, s.driver]),
        load_seconds,
        checked: model.checked(),
        first_token_seconds,
    }
}

/// Prefills `len` tokens again and again until a GPU has its full clock.
pub(crate) async fn warm_up(model: &mut LoadedModel, len: usize) -> Result<()> {
    let is_software = model.gpu().is_none_or(|gpu| gpu.caps().is_software);
    let time = if is_software { Duration::ZERO } else { WARM_UP };
    let (prompt, start) = (tokens(model, len.max(1)), Instant::now());
    while start.elapsed() < time {
        model.truncate(0);
        model.most_likely(&prompt).await?;
    }
    Ok(())
}

/// A fixed sequence of different tokens.
fn tokens(model: &LoadedModel, len: usize) -> Vec<u32> {
    (0..len).map(|position| token(position, 0, model.config().vocab_size)).collect()
}

/// The token at a position of a fixed sequence, another one for each seed.
pub(crate) fn token(position: usize, seed: u32, vocab_size: usize) -> u32 {
    let seed = seed.wrapping_mul(104_729);
    (position as u32).wrapping_mul(7919).wrapping_add(seed).wrapping_add(13) % vocab_size as u32
}

/// Fills the cache with `depth` tokens. Returns the most likely next token.
async fn fill(model: &mut LoadedModel, depth: usize) -> Result<u32> {
    model.truncate(0);
    Ok(match depth {
        0 => 1,
        _ => model.most_likely(&tokens(model, depth)).await?,
    })
}

async fn prefill(model: &mut LoadedModel, depth: usize, len: usize, repetitions: usize) -> Result<Test> {
    fill(model, depth).await?;
    let prompt = tokens(model, len);
    let samples = repeat(repetitions, async || {
        model.truncate(depth);
        model.most_likely(&prompt).await?;
        Ok(())
    })
    .await?;
    Ok(Test { prompt: len, decoded: 0, depth, samples, roofline: None })
}

async fn decode(model: &mut LoadedModel, depth: usize, count: usize, repetitions: usize) -> Result<Test> {
    let first = fill(model, depth).await?;
    let samples = repeat(repetitions, async || {
        model.truncate(depth);
        let mut next = first;
        for _ in 0..count {
            next = model.most_likely(&[next]).await?;
        }
        Ok(())
    })
    .await?;
    Ok(Test { prompt: 0, decoded: count, depth, samples, roofline: None })
}

/// Seconds of each run except the first, which warms up.
async fn repeat(count: usize, mut run: impl AsyncFnMut() -> Result<()>) -> Result<Vec<f64>> {
    run().await?;
    let mut samples = Vec::with_capacity(count);
    for _ in 0..count {
        let start = Instant::now();
        run().await?;
        samples.push(start.elapsed().as_secs_f64());
    }
    Ok(samples)
}
