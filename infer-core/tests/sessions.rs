//! Several sessions on one GPU, under executors that know nothing of it: each says what it says alone.

mod common;
#[path = "common/talking.rs"]
mod talking;

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
use talking::{engine, greedy, model};

/// With the kernels of real GPUs, and tokens run ahead of the host.
fn gpu() -> Option<Gpu> {
    common::gpu(OpenOptions { software_kernels: false, ..OpenOptions::default() })
}

fn engine_on(gpu: &Gpu, folder: &Path) -> Engine {
    engine(folder, Device::Gpu(gpu.clone(), KvDtype::F32), 700)
}

/// What each session is asked: greedy and drawn answers, short prompts and long ones.
fn tasks() -> Vec<(Vec<Message>, SamplingParams)> {
    let drawn = |seed| SamplingParams { temperature: 0.9, seed: Some(seed), ..greedy(40) };
    let said = ["one two three", "x", &"five, six and seven ".repeat(20), "four"];
    let params = [greedy(40), drawn(3), greedy(24), drawn(8)];
    said.into_iter().map(|said| vec![Message::user(said)]).zip(params).collect()
}

/// The tokens of an answer to a conversation that is new to the engine.
async fn tokens(engine: &mut Engine, (messages, params): &(Vec<Message>, SamplingParams)) -> Result<Vec<u32>> {
    engine.reset();
    let mut generation = engine.chat(messages, params.clone())?;
    while generation.next().await?.is_some() {}
    Ok(generation.tokens().to_vec())
}

/// What each says alone, on the same device.
fn alone(gpu: &Gpu, folder: &Path) -> Vec<Vec<u32>> {
    tasks().iter().map(|task| block_on(tokens(&mut engine_on(gpu, folder), task)).unwrap()).collect()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(4).build().unwrap()
}

#[test]
fn four_sessions_under_tokio_say_what_each_says_alone() {
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
    // The last session took the device along.
    thread.join().unwrap();
}

#[test]
fn who_runs_out_of_memory_is_told_and_the_others_notice_nothing() {
    let folder = model();
    let Some(gpu) = gpu() else { return };
    let tasks: Vec<_> = tasks().into_iter().map(|(messages, _)| (messages, greedy(30))).collect();
    let mut engines: Vec<Engine> = tasks.iter().map(|_| engine_on(&gpu, folder.path())).collect();
    // Each has what it needs from now on.
    let expected: Vec<_> = engines.iter_mut().zip(&tasks).map(|(e, task)| block_on(tokens(e, task)).unwrap()).collect();
    let mut greedy_one = engine_on(&gpu, folder.path());
    let short = (vec![Message::user("x")], greedy(4));
    let long = (vec![Message::user("many words ".repeat(60))], greedy(4));
    let of_short = block_on(tokens(&mut greedy_one, &short)).unwrap();
    gpu.limit_memory(Some(gpu.bytes_in_use() + 50_000));
    let driver = gpu.driver();
    std::thread::spawn(move || driver.run());
    let runtime = runtime();
    let fails = runtime.spawn(async move {
        for _ in 0..5 {
            let error = tokens(&mut greedy_one, &long).await.unwrap_err();
            assert!(matches!(error, Error::Gpu(GpuError::OutOfMemory { .. })), "{error}");
        }
        tokens(&mut greedy_one, &short).await.unwrap()
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

/// Sleeps until it is woken.
#[derive(Default)]
struct Bell(Mutex<bool>, Condvar);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        *self.0.lock().unwrap() = true;
        self.1.notify_one();
    }
}

#[test]
fn an_executor_written_by_hand_is_woken_by_a_driver() {
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
        assert!(!timeout.timed_out(), "nobody woke the future");
        *rung = false;
    };
    assert_eq!(found, expected);
}

#[test]
fn a_loop_that_polls_the_device_needs_no_driver() {
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
        assert!(start.elapsed() < Duration::from_secs(120), "the device was polled in vain");
        std::thread::yield_now();
    };
    assert_eq!(found, expected);
}

/// Lost, it wakes who waits.
#[test]
fn who_waits_for_a_lost_device_is_told() {
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

/// While other threads keep the same device busy, and another of the same adapter, the same numbers come out.
#[test]
fn a_busy_device_gives_the_bits_of_a_quiet_one() {
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
        block_on(engine.model().text_logits(&text, each)).unwrap();
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
