//! [`check`]: a case of a kernel on a device against its reference. The tests run it, and [`crate::selftest`].

use crate::{
    Case, Error, Result,
    gpu::{Buffer, Gpu, Recorder},
    kernel::{CaseBuffer, Purpose},
};

/// What lies behind each buffer and must stay.
const GUARD: [u32; 64] = [0x7fc0_dead; 64];

/// How a case came out.
pub type Outcome = std::result::Result<f64, String>;

/// Runs a case: its normalised mean squared error, or what is wrong.
///
/// Errors: the device's, such as out of memory; they say nothing about the kernel.
pub async fn check(gpu: &Gpu, case: &Case) -> Result<Outcome> {
    let host = (case.buffers)();
    let upload = |buffer: &CaseBuffer| {
        let guarded: Vec<u32> = buffer.words.iter().chain(&GUARD).copied().collect();
        gpu.upload(&guarded)
    };
    let device: Vec<Buffer<u32>> = host.iter().map(upload).collect::<Result<_>>()?;
    let mut recorder = Recorder::new(gpu);
    (case.record)(&mut recorder, &device);
    let mut results = Vec::with_capacity(device.len());
    for buffer in &device {
        match async { recorder.read(buffer)?.await }.await {
            Ok(words) => results.push(words),
            // The driver does not take the shader: that is the kernel's.
            Err(Error::Refused { reason }) => return Ok(Err(reason)),
            Err(error) => return Err(error),
        }
    }
    Ok(compare_all(case, &host, &results))
}

fn compare_all(case: &Case, host: &[CaseBuffer], results: &[Vec<u32>]) -> Outcome {
    let mut expected = (case.reference)(host).into_iter();
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
        worst = worst.max(compare(&found, &expected, case.tolerance).map_err(|e| format!("buffer {i}: {e}"))?);
    }
    Ok(worst)
}

fn decoded(purpose: Purpose, words: &[u32]) -> Vec<f32> {
    match purpose {
        Purpose::F32 | Purpose::Input => words.iter().map(|w| f32::from_bits(*w)).collect(),
        Purpose::U32 => words.iter().map(|w| *w as f32).collect(),
        Purpose::Kv(dtype, head_dim) => dtype.values(head_dim, words),
    }
}

/// NaN and infinity first, then the normalised mean squared error.
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
        "normalised mean squared error {nmse:.2e} over {tolerance:.0e}, worst at {at}: {found}, expected {expected}"
    ))
}
