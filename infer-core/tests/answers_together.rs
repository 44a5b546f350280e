//! Many answers at once on one engine: each is the answer given alone.

mod common;
#[path = "common/tiny_model.rs"]
mod tiny_model;

use std::{future::Future, path::Path, pin::pin, sync::Arc, task::Context};

use infer_core::{
    Device, Engine, Generation, Gpu, KvDtype, LoadOptions, Message, OpenOptions, SamplingParams, TokenLogprobs,
    block_on,
};
use model_format::DirFiles;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tiny_model::{greedy, model, options};

/// Context of each conversation, and the number of conversations that the cache has room for.
const CONTEXT: usize = 320;
const CONVERSATIONS: usize = 4;

fn engine(folder: &Path, device: Device) -> Engine {
    let options = LoadOptions { conversations: Some(CONVERSATIONS), ..options(folder, CONTEXT) };
    block_on(Engine::load_mlc(&DirFiles::new(folder), device, &options, &mut ())).unwrap()
}

/// The CPU, and the GPU with each set of limits.
fn devices() -> Vec<(&'static str, Device)> {
    let gpus = common::profiles().into_iter().map(|(name, gpu)| (name, Device::Gpu(gpu, KvDtype::F32)));
    [("the CPU", Device::Cpu(Default::default()))].into_iter().chain(gpus).collect()
}

/// A device with the kernels of real GPUs, and with lookahead.
fn gpu() -> Option<Gpu> {
    common::gpu(OpenOptions { software_kernels: false, ..OpenOptions::default() })
}

/// More conversations than fit into the cache at once: greedy, drawn on the device and on the host, with penalties, guesses and
/// log-probabilities; prompts of one to several pages, some with an equal beginning.
fn tasks() -> Vec<(Vec<Message>, SamplingParams)> {
    let drawn = |seed| SamplingParams { temperature: 0.9, top_p: 0.95, seed: Some(seed), ..greedy(30) };
    let shared = "The same beginning of several conversations, over more than one page. ".repeat(2);
    let prompts = [
        "one two three".to_string(),
        "x".into(),
        format!("{shared}And an end."),
        format!("{shared}Another end."),
        "five, six and seven ".repeat(8),
        "four".into(),
        format!("{shared}And an end."),
        "eight ".repeat(20),
        "nine".into(),
    ];
    let params = [
        greedy(40),
        drawn(3),
        greedy(24),
        drawn(8),
        SamplingParams { logprobs: Some(2), ..drawn(5) },
        SamplingParams { frequency_penalty: 0.5, repetition_penalty: 1.1, ..drawn(4) },
        SamplingParams { prompt_lookup: 4, ..greedy(40) },
        SamplingParams { presence_penalty: 0.4, ..greedy(40) },
        SamplingParams { prompt_lookup: 7, temperature: 0.2, ..drawn(9) },
    ];
    prompts.into_iter().map(|prompt| vec![Message::user(prompt)]).zip(params).collect()
}

#[derive(Debug, PartialEq)]
struct Answered {
    text: String,
    tokens: Vec<u32>,
}

async fn rest(mut generation: Generation) -> Answered {
    let mut text = String::new();
    let mut logprobs: Vec<TokenLogprobs> = Vec::new();
    while let Some(chunk) = generation.next().await.unwrap() {
        text.push_str(&chunk.text);
        logprobs.extend(chunk.logprobs);
    }
    let tokens = generation.tokens().to_vec();
    assert!(logprobs.is_empty() || logprobs.iter().map(|token| token.id).eq(tokens.iter().copied()));
    Answered { text, tokens }
}

fn alone(engine: &Engine) -> Vec<Answered> {
    let answer = |(messages, params): (Vec<Message>, SamplingParams)| {
        engine.reset();
        block_on(rest(engine.chat(&messages, params).unwrap()))
    };
    tasks().into_iter().map(answer).collect()
}

/// Starts the answers at random times and pulls them in random order.
fn together(engine: &Engine, seed: u64) -> Vec<Answered> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let tasks = tasks();
    let mut waiting: Vec<usize> = (0..tasks.len()).collect();
    let mut running: Vec<(usize, Generation, String)> = Vec::new();
    let mut answered: Vec<Option<Answered>> = tasks.iter().map(|_| None).collect();
    while !waiting.is_empty() || !running.is_empty() {
        if running.is_empty() || (!waiting.is_empty() && rng.random_bool(0.3)) {
            let i = waiting.swap_remove(rng.random_range(0..waiting.len()));
            let (messages, params) = &tasks[i];
            running.push((i, engine.chat(messages, params.clone()).unwrap(), String::new()));
        }
        let at = rng.random_range(0..running.len());
        let (i, generation, text) = &mut running[at];
        match block_on(generation.next()).unwrap() {
            Some(chunk) => text.push_str(&chunk.text),
            None => {
                answered[*i] = Some(Answered { text: std::mem::take(text), tokens: generation.tokens().to_vec() });
                running.swap_remove(at);
            }
        }
    }
    answered.into_iter().map(|answered| answered.expect("every answer ended")).collect()
}

#[test]
fn answers_together_equal_answers_alone() {
    let folder = model();
    for (name, device) in devices() {
        let engine = engine(folder.path(), device);
        let expected = alone(&engine);
        for seed in 0..2 {
            engine.reset();
            for (i, (found, expected)) in together(&engine, seed).iter().zip(&expected).enumerate() {
                assert_eq!(found, expected, "{name}: answer {i}, order {seed}");
            }
        }
        let used = block_on(engine.cache_use());
        assert_eq!(used.owned_pages, 0, "{name}: {used:?}");
    }
}

#[test]
fn an_equal_beginning_is_prefilled_once() {
    let folder = model();
    let Some(gpu) = gpu() else { return };
    let engine = engine(folder.path(), Device::Gpu(gpu, KvDtype::F32));
    let prompt = "The same beginning of several conversations, over more than one page. ".repeat(2);
    let streams: Vec<Generation> =
        (0..8).map(|i| engine.chat(&[Message::user(format!("{prompt}{i}"))], greedy(4)).unwrap()).collect();
    let mut cached = 0;
    for mut generation in streams {
        while block_on(generation.next()).unwrap().is_some() {}
        let stats = generation.stats();
        assert!(stats.prompt_tokens > 2 * 32, "{stats:?}");
        cached += usize::from(stats.cached_tokens >= 32);
    }
    assert_eq!(cached, 7, "all but the first find the beginning");
}

#[test]
fn a_thousand_dropped_answers_leave_no_page() {
    let folder = model();
    let engine = engine(folder.path(), Device::Cpu(Default::default()));
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let tasks = tasks();
    let expected = block_on(rest(engine.chat(&tasks[0].0, tasks[0].1.clone()).unwrap()));
    let mut open: Vec<Generation> = Vec::new();
    for i in 0..1000 {
        let (messages, params) = &tasks[i % tasks.len()];
        open.push(engine.chat(messages, params.clone()).unwrap());
        for _ in 0..rng.random_range(0..3) {
            let at = rng.random_range(0..open.len());
            block_on(open[at].next()).unwrap();
        }
        while open.len() > 6 || (!open.is_empty() && rng.random_bool(0.4)) {
            open.swap_remove(rng.random_range(0..open.len()));
        }
    }
    open.clear();
    let used = block_on(engine.cache_use());
    assert_eq!(used.owned_pages, 0, "{used:?}");
    assert_eq!(block_on(rest(engine.chat(&tasks[0].0, tasks[0].1.clone()).unwrap())), expected);
}

/// A dropped future loses no token, wherever the step was.
#[test]
fn dropped_futures_lose_no_token() {
    let folder = model();
    let Some(gpu) = gpu() else { return };
    let engine = engine(folder.path(), Device::Gpu(gpu, KvDtype::F32));
    let expected = alone(&engine);
    engine.reset();
    let mut all: Vec<Generation> =
        tasks().into_iter().map(|(messages, params)| engine.chat(&messages, params).unwrap()).collect();
    for round in 0..60 {
        for (i, generation) in all.iter_mut().enumerate() {
            if (round + i) % 3 == 0 {
                // Poll once, then drop the future.
                let _ = pin!(generation.next()).poll(&mut Context::from_waker(std::task::Waker::noop()));
            }
        }
        block_on(all[round % 9].next()).unwrap();
    }
    for (mut generation, expected) in all.into_iter().zip(expected) {
        while block_on(generation.next()).unwrap().is_some() {}
        assert_eq!(generation.tokens(), expected.tokens);
    }
}

#[test]
fn answers_of_one_engine_run_in_several_tasks_of_tokio() {
    use futures_util::StreamExt;
    let folder = model();
    let Some(gpu) = gpu() else { return };
    let engine = Arc::new(engine(folder.path(), Device::Gpu(gpu.clone(), KvDtype::F32)));
    let expected = alone(&engine);
    let driver = gpu.driver();
    std::thread::spawn(move || driver.run());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(3).build().unwrap();
    let answers: Vec<_> = tasks()
        .into_iter()
        .map(|(messages, params)| {
            let engine = engine.clone();
            runtime.spawn(async move {
                let stream = engine.chat(&messages, params).unwrap().into_stream();
                let texts: Vec<String> = stream.map(|chunk| chunk.unwrap().text).collect().await;
                texts.concat()
            })
        })
        .collect();
    for (answer, expected) in answers.into_iter().zip(expected) {
        assert_eq!(runtime.block_on(answer).unwrap(), expected.text);
    }
}
