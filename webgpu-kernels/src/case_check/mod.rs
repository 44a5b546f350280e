//! [`check`]: a case of a kernel on a device against its reference. The tests run it, and [`crate::selftest`].

mod queue;

use std::sync::Arc;

use crate::{
    Case, Error, Kernel, Result, Variant,
    gpu::{Buffer, Gpu, Readback, Recorder},
    kernel::{CaseBuffer, Purpose},
};

use queue::CaseQueue;

/// What lies behind each buffer and must stay.
const GUARD: [u32; 64] = [0x7fc0_dead; 64];

/// How a case came out.
pub type Outcome = std::result::Result<f64, String>;

/// Runs a case: its normalized mean squared error, or what is wrong.
///
/// Errors: the device's, such as out of memory; they say nothing about the kernel.
pub async fn check(gpu: &Gpu, case: &Case) -> Result<Outcome> {
    let running = Given::new(gpu, case).and_then(|given| given.run(gpu, case));
    finish(case, running).await
}

/// Runs many cases, the next ones on their way while the device compiles and the host computes what is expected of the
/// first. Their pipelines are made on other threads where the device has such, or by the browser side by side.
///
/// Errors as [`check`].
pub async fn check_all(gpu: &Gpu, cases: &[&Case]) -> Result<Vec<Outcome>> {
    check_each(gpu, cases, &mut |_| {}).await
}

/// The same, a software adapter's on as many of its devices as there are threads for.
pub async fn check_divided(gpu: &Gpu, cases: &[Arc<Case>], done: &mut dyn FnMut(usize)) -> Result<Vec<Outcome>> {
    if let Some(queue) = CaseQueue::begin(gpu, cases) {
        return queue.finish(gpu, done).await;
    }
    check_each(gpu, &cases.iter().map(|case| &**case).collect::<Vec<_>>(), done).await
}

/// Cases whose pipelines are made at a time, ahead of those that are run.
const CHUNK: usize = 48;

/// The same; `done` is told how many are done.
pub async fn check_each(gpu: &Gpu, cases: &[&Case], done: &mut dyn FnMut(usize)) -> Result<Vec<Outcome>> {
    let mut outcomes = Vec::with_capacity(cases.len());
    let mut chunks = cases.chunks(CHUNK);
    let given = |chunk: &[&Case]| {
        let given: Vec<Result<Given>> = chunk.iter().map(|case| Given::new(gpu, case)).collect();
        gpu.prepare(given.iter().flatten().flat_map(|given| given.pipelines.iter().cloned()));
        given
    };
    let mut next = chunks.next().map(given);
    while let Some(chunk) = next {
        gpu.prepared().await;
        next = chunks.next().map(given);
        let first = outcomes.len();
        let running: Vec<_> =
            chunk.into_iter().zip(&cases[first..]).map(|(given, case)| given?.run(gpu, case)).collect();
        for (running, case) in running.into_iter().zip(&cases[first..]) {
            outcomes.push(finish(case, running).await?);
            done(outcomes.len());
        }
    }
    if outcomes.iter().all(Outcome::is_ok) {
        return Ok(outcomes);
    }
    // A refusal may have met another than the refused: which one it was shows one by one.
    for (case, outcome) in cases.iter().zip(&mut outcomes) {
        gpu.shared.forgive();
        *outcome = check(gpu, case).await?;
    }
    Ok(outcomes)
}

/// A case whose inputs the device has.
struct Given {
    host: Vec<CaseBuffer>,
    device: Vec<Buffer<u32>>,
    /// What it is done with.
    pipelines: Vec<(&'static Kernel, Variant)>,
}

/// A case that the device was given to do.
struct Running {
    host: Vec<CaseBuffer>,
    results: Vec<Readback<u32>>,
}

impl Given {
    fn new(gpu: &Gpu, case: &Case) -> Result<Given> {
        let host = (case.buffers)();
        let upload = |buffer: &CaseBuffer| {
            let guarded: Vec<u32> = buffer.words.iter().chain(&GUARD).copied().collect();
            gpu.upload(&guarded)
        };
        let device: Vec<Buffer<u32>> = host.iter().map(upload).collect::<Result<_>>()?;
        let mut tracing = Recorder::tracing(gpu);
        (case.record)(&mut tracing, &device);
        let pipelines = tracing.take_trace().into_iter().map(|traced| (traced.kernel, traced.variant)).collect();
        Ok(Given { host, device, pipelines })
    }

    fn run(self, gpu: &Gpu, case: &Case) -> Result<Running> {
        let mut recorder = Recorder::new(gpu);
        (case.record)(&mut recorder, &self.device);
        let results = self.device.iter().map(|buffer| recorder.read(buffer)).collect::<Result<_>>()?;
        Ok(Running { host: self.host, results })
    }
}

async fn finish(case: &Case, running: Result<Running>) -> Result<Outcome> {
    let outcome = async {
        let Running { host, results } = running?;
        let expected = (case.reference)(&host);
        let mut words = Vec::with_capacity(results.len());
        for result in results {
            words.push(result.await?);
        }
        Ok(compare_all(case, &host, expected, &words))
    };
    match outcome.await {
        // The driver does not take the shader: that is the kernel's.
        Err(Error::Refused { reason }) => Ok(Err(reason)),
        outcome => outcome,
    }
}

fn compare_all(case: &Case, host: &[CaseBuffer], expected: Vec<Vec<f32>>, results: &[Vec<u32>]) -> Outcome {
    let mut expected = expected.into_iter();
    let mut worst: f64 = 0.0;
    for (i, (before, after)) in host.iter().zip(results).enumerate() {
        let (words, guard) = after.split_at(before.words.len());
        if guard != GUARD {
            return Err(format!("buffer {i}: a word behind its end was written"));
        }
        if before.purpose == Purpose::Input {
            continue;
        }
        let expected = expected.next().ok_or(format!("buffer {i}: the reference has no such output"))?;
        let found = decoded(before.purpose, words);
        worst = worst.max(
            compare_rows(before.purpose, &found, &expected, case.tolerance).map_err(|e| format!("buffer {i}: {e}"))?,
        );
    }
    Ok(worst)
}

/// A cache row by row: one row that is wrong is nothing beside the others.
fn compare_rows(purpose: Purpose, found: &[f32], expected: &[f32], tolerance: f64) -> Outcome {
    let Purpose::Kv(_, head_dim) = purpose else { return compare(found, expected, tolerance) };
    if found.len() != expected.len() {
        return compare(found, expected, tolerance);
    }
    let mut worst: f64 = 0.0;
    for (row, (found, expected)) in found.chunks(head_dim).zip(expected.chunks(head_dim)).enumerate() {
        worst = worst.max(compare(found, expected, tolerance).map_err(|e| format!("row {row}: {e}"))?);
    }
    Ok(worst)
}

/// What a case writes on a device when it is done so many times, one after the other.
pub(crate) struct Outputs(Vec<Vec<f32>>);

/// The outputs of a case. Errors as [`check`], and what the driver refuses.
pub(crate) async fn outputs_of(gpu: &Gpu, case: &Case, rounds: usize) -> Result<Outputs> {
    let Given { host, device, .. } = Given::new(gpu, case)?;
    let mut recorder = Recorder::new(gpu);
    (0..rounds).for_each(|_| (case.record)(&mut recorder, &device));
    let mut outputs = Vec::new();
    for (before, buffer) in host.iter().zip(&device).filter(|(before, _)| before.purpose != Purpose::Input) {
        let words = recorder.read(buffer)?.await?;
        outputs.push(decoded(before.purpose, &words[..before.words.len()]));
    }
    Ok(Outputs(outputs))
}

/// Runs a case against the outputs of another one with the same buffers. Errors as [`check`].
pub(crate) async fn check_against(gpu: &Gpu, case: &Case, expected: &Outputs, rounds: usize) -> Result<Outcome> {
    let found = match outputs_of(gpu, case, rounds).await {
        Err(Error::Refused { reason }) => {
            gpu.shared.forgive();
            return Ok(Err(reason));
        }
        found => found?,
    };
    let host = (case.buffers)();
    let purposes = host.iter().map(|buffer| buffer.purpose).filter(|purpose| *purpose != Purpose::Input);
    let mut worst: f64 = 0.0;
    for ((purpose, found), expected) in purposes.zip(&found.0).zip(&expected.0) {
        match compare_rows(purpose, found, expected, case.tolerance) {
            Ok(nmse) => worst = worst.max(nmse),
            wrong => return Ok(wrong),
        }
    }
    Ok(Ok(worst))
}

fn decoded(purpose: Purpose, words: &[u32]) -> Vec<f32> {
    match purpose {
        Purpose::F32 | Purpose::Input => words.iter().map(|w| f32::from_bits(*w)).collect(),
        Purpose::U32 => words.iter().map(|w| *w as f32).collect(),
        Purpose::Kv(dtype, head_dim) => dtype.values(head_dim, words),
    }
}

/// NaN and infinity first, then the normalized mean squared error.
fn compare(found: &[f32], expected: &[f32], tolerance: f64) -> Outcome {
    if found.len() != expected.len() {
        return Err(format!("{} values, expected {}", found.len(), expected.len()));
    }
    if let Some(i) = found.iter().position(|v| !v.is_finite()) {
        return Err(format!("value {i} is {}, expected {}", found[i], expected[i]));
    }
    let square = |v: f64| v * v;
    let error: f64 = found.iter().zip(expected).map(|(f, e)| square(f64::from(*f) - f64::from(*e))).sum();
    let power: f64 = expected.iter().map(|e| square(f64::from(*e))).sum();
    let nmse = if error == 0.0 { 0.0 } else { error / power };
    if nmse <= tolerance {
        return Ok(nmse);
    }
    let difference = |i: usize| (found[i] - expected[i]).abs();
    let at = (0..found.len()).max_by(|&a, &b| difference(a).total_cmp(&difference(b))).unwrap_or(0);
    let (found, expected) = (found[at], expected[at]);
    Err(format!(
        "normalized mean squared error {nmse:.2e} over {tolerance:.0e}, worst at {at}: {found}, expected {expected}"
    ))
}
