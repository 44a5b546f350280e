//! `chat-cli bench`: prefill and decode of a model, or of a shape with random weights.

use std::{
    io::{self, Write},
    process::ExitCode,
    time::{Duration, Instant},
};

use chat_cli::bench_report::{self, Roofline, Subject, Test};
use infer_core::{LoadedModel, block_on, ops::candle::CpuWeights};
use model_format::params;

use crate::{
    arguments::{BenchArguments, Output},
    load::{self, Kinds, Place, Weights},
    progress::Bars,
};

/// Runs `chat-cli bench`.
pub fn bench(arguments: &BenchArguments) -> anyhow::Result<ExitCode> {
    let longest = arguments.prompt.iter().chain(&arguments.decode).max().copied().unwrap_or(0);
    let context = arguments.depth.iter().max().copied().unwrap_or(0) + longest + 1;
    let mut bars = Bars::new(arguments.quiet);
    let place = Place::of(&arguments.device, &arguments.kernels)?;
    let (name, weights) = Weights::of(&arguments.subject, &mut bars)?;
    let kinds = Kinds::new(arguments.cache, arguments.cpu_weights);
    let start = Instant::now();
    let (mut model, device) = load::load_model(&weights, &place, kinds, context, &mut bars)?;
    let load_seconds = start.elapsed().as_secs_f64();
    block_on(model.most_likely(&[1]))?;
    let first_token_seconds = start.elapsed().as_secs_f64();

    let is_software = model.gpu().is_none_or(|gpu| gpu.caps().is_software);
    let warm_up = if is_software { Duration::ZERO } else { WARM_UP };
    run_for(&mut model, longest, warm_up)?;
    let copy_bandwidth = match model.gpu().filter(|_| arguments.roofline) {
        Some(gpu) => Some(block_on(gpu.copy_bandwidth()).map_err(infer_core::Error::from)?),
        None => None,
    };
    let summary = model.gpu().map(|gpu| gpu.summary().clone());
    let products = match kinds.cpu_weights {
        CpuWeights::Exact => "products in f32",
        CpuWeights::Integer => "products of codes in integers",
    };
    let subject = Subject {
        model: name,
        parameters: params(model.config()).iter().map(|param| param.shape.iter().product::<usize>()).sum(),
        bytes: summary.as_ref().map(|_| model.need().weights),
        bytes_per_token: summary.as_ref().map(|_| model.need().weights_per_token),
        device: summary.map_or([device, "candle".into(), products.into()], |s| [s.name, s.backend, s.driver]),
        load_seconds,
        checked: model.checked(),
        first_token_seconds,
    };
    let mut tests = Vec::new();
    for &depth in &arguments.depth {
        for &len in arguments.prompt.iter().filter(|&&len| len > 0) {
            bars.say(&format!("pp{len} @ d{depth}"));
            tests.push(prefill(&mut model, depth, len, arguments.repetitions)?);
        }
        for &count in arguments.decode.iter().filter(|&&count| count > 0) {
            bars.say(&format!("tg{count} @ d{depth}"));
            let mut test = decode(&mut model, depth, count, arguments.repetitions)?;
            if let Some(copy_bandwidth) = copy_bandwidth {
                model.truncate(depth);
                test.roofline = block_on(model.profile())?.map(|profile| Roofline {
                    token_seconds: test.token_seconds(),
                    copy_bandwidth,
                    profile,
                });
            }
            tests.push(test);
        }
    }
    bars.warn(model.take_notice());
    if arguments.roofline && copy_bandwidth.is_none() {
        bars.say("warning: there is no roofline of the CPU");
    }
    let at = arguments.at;
    let text = match arguments.output {
        Output::Md => bench_report::markdown(&subject, &tests, at),
        Output::Json => format!("{:#}\n", bench_report::json(&subject, &tests, at)),
        Output::Csv => bench_report::csv(&subject, &tests),
    };
    io::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

/// A device that had nothing to do runs slowly until it has been busy for about a second.
const WARM_UP: Duration = Duration::from_millis(1500);

/// Prefills until so much time is over.
fn run_for(model: &mut LoadedModel, len: usize, time: Duration) -> anyhow::Result<()> {
    let (prompt, start) = (tokens(model, len.max(1)), Instant::now());
    while start.elapsed() < time {
        model.truncate(0);
        block_on(model.most_likely(&prompt))?;
    }
    Ok(())
}

/// Some tokens of the vocabulary.
fn tokens(model: &LoadedModel, len: usize) -> Vec<u32> {
    (0..len as u32).map(|i| (i.wrapping_mul(7919) + 13) % model.config().vocab_size as u32).collect()
}

/// Fills the cache; returns the token after it.
fn fill(model: &mut LoadedModel, depth: usize) -> anyhow::Result<u32> {
    model.truncate(0);
    Ok(match depth {
        0 => 1,
        _ => block_on(model.most_likely(&tokens(model, depth)))?,
    })
}

fn prefill(model: &mut LoadedModel, depth: usize, len: usize, repetitions: usize) -> anyhow::Result<Test> {
    fill(model, depth)?;
    let prompt = tokens(model, len);
    let samples = repeat(repetitions, || {
        model.truncate(depth);
        block_on(model.most_likely(&prompt))?;
        Ok(())
    })?;
    Ok(Test { prompt: len, decoded: 0, depth, samples, roofline: None })
}

fn decode(model: &mut LoadedModel, depth: usize, count: usize, repetitions: usize) -> anyhow::Result<Test> {
    let first = fill(model, depth)?;
    let samples = repeat(repetitions, || {
        model.truncate(depth);
        let mut next = first;
        for _ in 0..count {
            next = block_on(model.most_likely(&[next]))?;
        }
        Ok(())
    })?;
    Ok(Test { prompt: 0, decoded: count, depth, samples, roofline: None })
}

/// Seconds of each run but the first, which warms up.
fn repeat(count: usize, mut run: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<Vec<f64>> {
    run()?;
    let mut timed = || {
        let start = Instant::now();
        run().map(|()| start.elapsed().as_secs_f64())
    };
    (0..count).map(|_| timed()).collect()
}
