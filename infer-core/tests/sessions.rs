//! Several sessions on one GPU, under different executors. Each gives the same answer as alone.

mod common;
#[path = "common/tiny_model.rs"]
mod tiny_model;

use std::{
    future::Future,
    path::Path,
    pin::pin,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::{Duration, Instant},
};

use infer_core::{
    Device, Engine, Error, Gpu, GpuError, KvDtype, Message, OpenOptions, Result, SamplingParams, block_on,
};
use tiny_model::{engine, greedy, model};

/// A device with the kernels of real GPUs, and with lookahead.
fn gpu() -> Option<Gpu> {
    common::gpu(OpenOptions { software_kernels: false, ..OpenOptions::default() })
}

fn engine_on(gpu: &Gpu, folder: &Path) -> Engine {
    engine(folder, Device::Gpu(gpu.clone(), KvDtype::F32), 700)
}

/// The prompt and parameters of each session: greedy and sampled answers, short and long prompts.
fn tasks() -> Vec<(Vec<Message>, SamplingParams)> {
    let drawn = |seed| SamplingParams { temperature: 0.9, seed: Some(seed), ..greedy(40) };
    let prompts = ["one two three", "x", &"five, six and seven ".repeat(20), "four"];
    let params = [greedy(40), drawn(3), greedy(24), drawn(8)];
    prompts.into_iter().map(|prompt| vec![Message::user(prompt)]).zip(params).collect()
}

/// The tokens of an answer, with an empty KV cache.
async fn tokens(engine: &mut Engine, (messages, params): &(Vec<Message>, SamplingParams)) -> Result<Vec<u32>> {
    engine.reset();
    let mut generation = engine.chat(messages, params.clone())?;
    while generation.next().await?.is_some() {}
    Ok(generation.tokens().to_vec())
}

/// The answer of each session alone, on the same device.
fn alone(gpu: &Gpu, folder: &Path) -> Vec<Vec<u32>> {
    tasks().iter().map(|task| block_on(tokens(&mut engine_on(gpu, folder), task)).unwrap()).collect()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(4).build().unwrap()
}

#[test]
fn four_sessions_under_tokio_answer_as_alone() {
    let folder = model();
    let Some(gpu) = gpu() else { return };
    let expected = alone(&gpu, folder.path());
    let engines: Vec<Engine> = expected.iter().map(|_| engine_on(&gpu, folder.path())).collect();
    let driver = gpu.driver();
    let thread = std::thread::spawn(move || driver.run());
    drop(gpu);
    let runtime = runtime();
    let answers: Vec<_> = engines
        .into_iter()
        .zip(tasks())
        .map(|(mut engine, task)| {
            runtime.spawn(async move {
                let mut all = Vec::new();
                for _ in 0..3 {
                    all.push(tokens(&mut engine, &task).await.unwrap());
                }
                all
            })
        })
        .collect();
    for (answer, expected) in answers.into_iter().zip(expected) {
        assert_eq!(runtime.block_on(answer).unwrap(), vec![expected; 3]);
    }
    // The driver ends with the last session.
    thread.join().unwrap();
}

#[test]
fn out_of_memory_fails_only_the_session_that_allocates() {
    let folder = model();
    let Some(gpu) = gpu() else { return };
    let tasks: Vec<_> = tasks().into_iter().map(|(messages, _)| (messages, greedy(30))).collect();
    let mut engines: Vec<Engine> = tasks.iter().map(|_| engine_on(&gpu, folder.path())).collect();
    // After its first answer, a session has allocated all of its memory.
    let expected: Vec<_> = engines.iter_mut().zip(&tasks).map(|(e, task)| block_on(tokens(e, task)).unwrap()).collect();
    let mut large = engine_on(&gpu, folder.path());
    let short = (vec![Message::user("x")], greedy(4));
    let long = (vec![Message::user("many words ".repeat(60))], greedy(4));
    let of_short = block_on(tokens(&mut large, &short)).unwrap();
    gpu.limit_memory(Some(gpu.bytes_in_use() + 50_000));
    let driver = gpu.driver();
    std::thread::spawn(move || driver.run());
    let runtime = runtime();
    let fails = runtime.spawn(async move {
        for _ in 0..5 {
            let error = tokens(&mut large, &long).await.unwrap_err();
            assert!(matches!(error, Error::Gpu(GpuError::OutOfMemory { .. })), "{error}");
        }
        tokens(&mut large, &short).await.unwrap()
    });
    let others: Vec<_> = engines
        .into_iter()
        .zip(tasks)
        .map(|(mut engine, task)| {
            runtime.spawn(async move {
                let mut all = Vec::new();
                for _ in 0..5 {
                    all.push(tokens(&mut engine, &task).await.unwrap());
                }
                all
            })
        })
        .collect();
    for (other, expected) in others.into_iter().zip(expected) {
        assert_eq!(runtime.block_on(other).unwrap(), vec![expected; 5]);
    }
    assert_eq!(runtime.block_on(fails).unwrap(), of_short);
}

/// A waker with a condition variable.
#[derive(Default)]
struct Bell(Mutex<bool>, Condvar);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        *self.0.lock().unwrap() = true;
        self.1.notify_one();
    }
}

#[test]
fn a_driver_wakes_a_hand_written_executor() {
    let folder = model();
    let Some(gpu) = gpu() else { return };
    let (task, expected) = (tasks().swap_remove(0), alone(&gpu, folder.path()).swap_remove(0));
    let mut engine = engine_on(&gpu, folder.path());
    let driver = gpu.driver();
    std::thread::spawn(move || driver.run());
    let bell = Arc::new(Bell::default());
    let waker = Waker::from(bell.clone());
    let mut future = pin!(tokens(&mut engine, &task));
    let found = loop {
        if let Poll::Ready(found) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            break found.unwrap();
        }
        let rung = bell.0.lock().unwrap();
        let (mut rung, timeout) = bell.1.wait_timeout_while(rung, Duration::from_secs(60), |rung| !*rung).unwrap();
        assert!(!timeout.timed_out(), "the future was not woken");
        *rung = false;
    };
    assert_eq!(found, expected);
}

#[test]
fn an_event_loop_with_gpu_poll_needs_no_driver() {
    let folder = model();
    let Some(gpu) = gpu() else { return };
    let (task, expected) = (tasks().swap_remove(1), alone(&gpu, folder.path()).swap_remove(1));
    let mut engine = engine_on(&gpu, folder.path());
    let mut future = pin!(tokens(&mut engine, &task));
    let start = Instant::now();
    let found = loop {
        gpu.poll();
        if let Poll::Ready(found) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            break found.unwrap();
        }
        assert!(start.elapsed() < Duration::from_secs(120), "polling the device did not complete the answer");
        std::thread::yield_now();
    };
    assert_eq!(found, expected);
}

/// A lost device wakes the waiting futures.
#[test]
fn a_lost_device_fails_the_pending_answer() {
    let folder = model();
    let Some(gpu) = gpu() else { return };
    let mut engine = engine_on(&gpu, folder.path());
    let driver = gpu.driver();
    std::thread::spawn(move || driver.run());
    let runtime = runtime();
    let answer = runtime.spawn(async move {
        loop {
            if let Err(error) = tokens(&mut engine, &(vec![Message::user("x")], greedy(40))).await {
                return error;
            }
        }
    });
    std::thread::sleep(Duration::from_millis(300));
    gpu.destroy();
    let error = runtime.block_on(answer).unwrap();
    assert!(matches!(error, Error::Gpu(GpuError::DeviceLost { .. })), "{error}");
}

/// Other threads on the same device, and on another device of the adapter, do not change a bit.
#[test]
fn results_do_not_depend_on_the_load_of_the_device() {
    let folder = model();
    let (Some(gpu), Some(other)) = (gpu(), gpu()) else { return };
    let mut engine = engine_on(&gpu, folder.path());
    let text: Vec<u32> = (0..400).map(|i| i * 7 % 500).collect();
    let mut bits = || {
        let mut bits = Vec::new();
        let each = |logits: &[f32]| -> Result<()> {
            bits.extend(logits.iter().map(|logit| logit.to_bits()));
            Ok(())
        };
        block_on(async { engine.model().await.text_logits(&text, each).await }).unwrap();
        (bits, block_on(tokens(&mut engine, &tasks()[0])).unwrap())
    };
    let quiet = bits();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for gpu in [&gpu, &other] {
            let (mut engine, stop) = (engine_on(gpu, folder.path()), &stop);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    tasks().iter().for_each(|task| drop(block_on(tokens(&mut engine, task)).unwrap()));
                }
            });
        }
        let same = (0..5).map(|_| bits() == quiet).collect::<Vec<_>>();
        stop.store(true, Ordering::Relaxed);
        assert_eq!(same, [true; 5]);
    });
}
