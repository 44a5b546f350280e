//! On a device: every case of every kernel against its reference, on the device as it is and as lesser ones
//! ([`OpenOptions::PROFILES`]).
//!
//! A device that lacks something skips that with the reason printed; `REQUIRE_GPU=1` turns a skip into a failure.

use webgpu_kernels::{
    Case, CaseSet, Error, KERNELS, Kernel,
    gpu::{Buffer, Gpu, OpenOptions, Recorder, Selection, block_on},
    kernel::{CaseBuffer, Purpose},
};

/// What lies behind each buffer and must stay.
const GUARD: [u32; 64] = [0x7fc0_dead; 64];

/// The device, or `None` with the reason printed.
fn open(options: OpenOptions) -> Option<Gpu> {
    match block_on(Gpu::open(&Selection::Auto, options)) {
        Ok(gpu) => Some(gpu),
        Err(e) => {
            skip(&format!("no device: {e}"));
            None
        }
    }
}

fn skip(reason: &str) {
    let is_required = std::env::var("REQUIRE_GPU").is_ok_and(|value| value == "1");
    assert!(!is_required, "REQUIRE_GPU=1, but {reason}");
    println!("skipped: {reason}");
}

#[test]
fn with_all_that_the_device_has() {
    check_profile(0);
}

#[test]
fn with_the_kernels_of_real_gpus() {
    check_profile(1);
}

#[test]
fn with_f16_and_no_subgroups() {
    check_profile(2);
}

#[test]
fn with_what_every_webgpu_device_has() {
    check_profile(3);
}

/// Each profile is a test of its own, so that they run side by side.
fn check_profile(index: usize) {
    let (name, options) = OpenOptions::PROFILES[index];
    let Some(gpu) = open(options) else { return };
    if gpu.caps().subgroups.is_none() && options.subgroups {
        skip(&format!("{}: subgroup variants: the device has no subgroups", gpu.summary().name));
    }
    assert!(!gpu.caps().f16 || options.f16, "{name}: f16");
    assert!(gpu.caps().subgroups.is_none() || options.subgroups, "{name}: subgroups");
    println!("{name}");
    check_all(&gpu);
}

fn check_all(gpu: &Gpu) {
    println!("{}: {:?}", gpu.summary().name, gpu.caps());
    let mut failures = Vec::new();
    let mut count = 0;
    for kernel in KERNELS {
        for case in (kernel.cases)(gpu.caps(), CaseSet::Test) {
            count += 1;
            let start = std::time::Instant::now();
            if let Err(reason) = check(gpu, &case) {
                failures.push(format!("{} {} [{}]: {reason}", kernel.name, case.label, case.variant));
            }
            report(kernel, &case, start);
        }
    }
    assert!(failures.is_empty(), "{} of {count} cases failed:\n{}", failures.len(), failures.join("\n"));
    println!("{count} cases");
    assert!(count >= 500, "{count} cases");
}

fn report(kernel: &Kernel, case: &Case, start: std::time::Instant) {
    println!("{:6.1} ms  {} {} [{}]", start.elapsed().as_secs_f64() * 1e3, kernel.name, case.label, case.variant);
}

fn check(gpu: &Gpu, case: &Case) -> Result<(), String> {
    let host = (case.buffers)();
    let upload = |buffer: &CaseBuffer| {
        let guarded: Vec<u32> = buffer.words.iter().chain(&GUARD).copied().collect();
        gpu.upload(&guarded).map_err(|e| e.to_string())
    };
    let device: Vec<Buffer<u32>> = host.iter().map(upload).collect::<Result<_, String>>()?;
    let mut recorder = Recorder::new(gpu);
    (case.record)(&mut recorder, &device);
    let read = |buffer: &Buffer<u32>| block_on(recorder.read(buffer)?);
    let results: Vec<Vec<u32>> = device.iter().map(read).collect::<Result<_, Error>>().map_err(|e| e.to_string())?;

    let mut expected = (case.reference)(&host).into_iter();
    for (i, (before, after)) in host.iter().zip(&results).enumerate() {
        let (words, guard) = after.split_at(before.words.len());
        if guard != GUARD {
            return Err(format!("buffer {i}: a word behind its end was written"));
        }
        if before.purpose == Purpose::Input {
            continue;
        }
        let expected = expected.next().ok_or(format!("buffer {i}: the reference has no such output"))?;
        let found = decoded(before.purpose, words);
        compare(&found, &expected, case.tolerance).map_err(|e| format!("buffer {i}: {e}"))?;
    }
    Ok(())
}

fn decoded(purpose: Purpose, words: &[u32]) -> Vec<f32> {
    match purpose {
        Purpose::F32 | Purpose::Input => words.iter().map(|w| f32::from_bits(*w)).collect(),
        Purpose::U32 => words.iter().map(|w| *w as f32).collect(),
        Purpose::F16 => {
            let half = |bits: u32| half::f16::from_bits(bits as u16).to_f32();
            words.iter().flat_map(|w| [half(*w), half(w >> 16)]).collect()
        }
    }
}

/// NaN and infinity first, then the normalised mean squared error.
fn compare(found: &[f32], expected: &[f32], tolerance: f64) -> Result<(), String> {
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
    if nmse > tolerance {
        let worst =
            (0..found.len()).max_by(|&a, &b| (found[a] - expected[a]).abs().total_cmp(&(found[b] - expected[b]).abs()));
        let at = worst.unwrap_or(0);
        return Err(format!(
            "normalised mean squared error {nmse:.2e} over {tolerance:.0e}, worst at {at}: {}, expected {}",
            found[at], expected[at]
        ));
    }
    Ok(())
}
