//! [`check`]: runs a case of a kernel on a device and compares it with its reference. The tests and [`crate::selftest`] call it.

mod queue;

use std::sync::Arc;

use crate::{
    Case, Error, Kernel, Result, Variant,
    gpu::{Buffer, Gpu, Readback, Recorder},
    kernel::{CaseBuffer, Purpose},
};

use queue::CaseQueue;

/// Words after the end of each buffer. A kernel must not change them.
const GUARD: [u32; 64] = [0x7fc0_dead; 64];

/// The normalized mean squared error (NMSE) of a case, or the reason why it is wrong.
pub type Outcome = std::result::Result<f64, String>;

/// Runs a case.
///
/// Errors: errors of the device that are not the kernel's fault, for example out of memory.
pub async fn check(gpu: &Gpu, case: &Case) -> Result<Outcome> {
    let running = Uploaded::new(gpu, case).and_then(|uploaded| uploaded.run(gpu, case));
    finish(case, running).await
}

/// Runs many cases. Other threads, or the browser, compile the pipelines of the next cases while the device runs the current ones and the
/// host computes their references.
///
/// Errors as [`check`].
pub async fn check_all(gpu: &Gpu, cases: &[&Case]) -> Result<Vec<Outcome>> {
    check_each(gpu, cases, &mut |_| {}).await
}

/// [`check_all`]. On a software adapter it uses several devices, one per thread. `done` gets the number of finished cases.
pub async fn check_divided(gpu: &Gpu, cases: &[Arc<Case>], done: &mut dyn FnMut(usize)) -> Result<Vec<Outcome>> {
    if let Some(queue) = CaseQueue::begin(gpu, cases) {
        return queue.finish(gpu, done).await;
    }
    check_each(gpu, &cases.iter().map(|case| &**case).collect::<Vec<_>>(), done).await
}

/// Cases whose pipelines are compiled together, ahead of the running ones.
const CHUNK: usize = 48;

/// [`check_all`]. `done` gets the number of finished cases.
pub async fn check_each(gpu: &Gpu, cases: &[&Case], done: &mut dyn FnMut(usize)) -> Result<Vec<Outcome>> {
    let mut outcomes = Vec::with_capacity(cases.len());
    let mut chunks = cases.chunks(CHUNK);
    let upload = |chunk: &[&Case]| {
        let uploaded: Vec<Result<Uploaded>> = chunk.iter().map(|case| Uploaded::new(gpu, case)).collect();
        gpu.prepare(uploaded.iter().flatten().flat_map(|uploaded| uploaded.pipelines.iter().cloned()));
        uploaded
    };
    let mut next = chunks.next().map(upload);
    while let Some(chunk) = next {
        gpu.prepared().await;
        next = chunks.next().map(upload);
        let first = outcomes.len();
        let running: Vec<_> =
            chunk.into_iter().zip(&cases[first..]).map(|(uploaded, case)| uploaded?.run(gpu, case)).collect();
        for (running, case) in running.into_iter().zip(&cases[first..]) {
            outcomes.push(finish(case, running).await?);
            done(outcomes.len());
        }
    }
    if outcomes.iter().all(Outcome::is_ok) {
        return Ok(outcomes);
    }
    // A rejected call may have failed another case too. Run the cases one by one to find the wrong ones.
    for (case, outcome) in cases.iter().zip(&mut outcomes) {
        gpu.shared.forgive();
        *outcome = check(gpu, case).await?;
    }
    Ok(outcomes)
}

/// A case with its inputs on the device.
struct Uploaded {
    host: Vec<CaseBuffer>,
    device: Vec<Buffer<u32>>,
    /// Kernels and variants that it dispatches.
    pipelines: Vec<(&'static Kernel, Variant)>,
}

/// A submitted case.
struct Running {
    host: Vec<CaseBuffer>,
    results: Vec<Readback<u32>>,
}

impl Uploaded {
    fn new(gpu: &Gpu, case: &Case) -> Result<Uploaded> {
        let host = (case.buffers)();
        let upload = |buffer: &CaseBuffer| {
            let guarded: Vec<u32> = buffer.words.iter().chain(&GUARD).copied().collect();
            gpu.upload(&guarded)
        };
        let device: Vec<Buffer<u32>> = host.iter().map(upload).collect::<Result<_>>()?;
        let mut tracing = Recorder::tracing(gpu);
        (case.record)(&mut tracing, &device);
        let pipelines = tracing.take_trace().into_iter().map(|traced| (traced.kernel, traced.variant)).collect();
        Ok(Uploaded { host, device, pipelines })
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
        // The driver rejects the shader: the kernel is wrong.
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
            return Err(format!("buffer {i}: a word after its end was written"));
        }
        if before.purpose == Purpose::Input {
            continue;
        }
        let expected = expected.next().ok_or(format!("buffer {i}: the reference has no output for it"))?;
        let found = decoded(before.purpose, words);
        worst = worst.max(
            compare_rows(before.purpose, &found, &expected, case.tolerance).map_err(|e| format!("buffer {i}: {e}"))?,
        );
    }
    Ok(worst)
}

/// Compares a cache row by row: one wrong row would hardly change the error of all rows.
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

/// Outputs of a case after repeated runs.
pub(crate) struct Outputs(Vec<Vec<f32>>);

/// Runs a case `rounds` times and returns its outputs. Errors as [`check`], and rejected calls.
pub(crate) async fn outputs_of(gpu: &Gpu, case: &Case, rounds: usize) -> Result<Outputs> {
    let Uploaded { host, device, .. } = Uploaded::new(gpu, case)?;
    let mut recorder = Recorder::new(gpu);
    (0..rounds).for_each(|_| (case.record)(&mut recorder, &device));
    let mut outputs = Vec::new();
    for (before, buffer) in host.iter().zip(&device).filter(|(before, _)| before.purpose != Purpose::Input) {
        let words = recorder.read(buffer)?.await?;
        outputs.push(decoded(before.purpose, &words[..before.words.len()]));
    }
    Ok(Outputs(outputs))
}

/// Runs a case `rounds` times and compares it with the outputs of another case of the same buffers. Errors as [`check`].
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

/// Rejects NaN and infinity, then compares the normalized mean squared error with the tolerance.
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
