//! Every kernel on its own, in GB/s and GFLOP/s by the case's own numbers, beside the bandwidth of a copy on the device.
//!
//! `cargo bench -p benches --bench kernels -- gemv --device auto`. Time is the device's, from timestamps around one
//! compute pass of many dispatches. The dispatches go through copies of the case's buffers, together larger than the
//! device's cache, so that weights come from memory as they do in a model.

use std::time::Instant;

use anyhow::{Result, bail};
use clap::Parser;
use infer_core::block_on;
use serde_json::json;
use webgpu_kernels::{
    Case, CaseSet, Gpu, KERNELS,
    case_check::check,
    gpu::{Buffer, DeviceType, OpenOptions, PassTimer, Recorder, Selection},
};

/// Every kernel on its own.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Only cases whose line contains each of these.
    filter: Vec<String>,
    /// auto, or the number or name of a GPU adapter.
    #[arg(long, default_value = "auto")]
    device: Selection,
    /// Take no subgroups, no f16 and only WebGPU's default limits.
    #[arg(long)]
    webgpu_defaults: bool,
    /// The small cases of the tests in place of the large ones.
    #[arg(long)]
    test_cases: bool,
    /// Check each case against its reference before it is measured; the large cases take long on the host.
    #[arg(long)]
    check: bool,
    /// Measured passes of each case; the median counts.
    #[arg(long, short, default_value_t = 5)]
    repeat: usize,
    /// Milliseconds that a pass should take.
    #[arg(long, default_value_t = 100.0)]
    pass_ms: f64,
    /// MiB that the copies of a case's buffers fill; 256, or 64 for a software device, unless given.
    #[arg(long)]
    rotate_mib: Option<u64>,
    /// Print one JSON object per case.
    #[arg(long)]
    json: bool,
    /// Passed by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    benches::exit_with(run(&Args::parse()));
}

fn run(args: &Args) -> Result<()> {
    let options = if args.webgpu_defaults {
        OpenOptions { timestamps: true, ..OpenOptions::WEBGPU_DEFAULTS }
    } else {
        OpenOptions::default()
    };
    let gpu = block_on(Gpu::open(&args.device, options))?;
    let copy = block_on(gpu.copy_bandwidth())?;
    let device = format!("{} ({}, {})", gpu.summary().name, gpu.summary().backend, gpu.summary().driver);
    if !args.json {
        println!("{device}: copies {:.1} GB/s, read and written", copy * 1e-9);
        println!("{:>10} {:>9} {:>10} {:>6}  kernel, case [variant]", "us", "GB/s", "GFLOP/s", "copy");
    }
    let rotate = args.rotate_mib.unwrap_or(if gpu.summary().device_type == DeviceType::Cpu { 64 } else { 256 }) << 20;
    let set = if args.test_cases { CaseSet::Test } else { CaseSet::Bench };
    let mut count = 0;
    for kernel in KERNELS {
        for case in (kernel.cases)(gpu.caps(), set) {
            let name = format!("{} {} [{}]", kernel.name, case.label, case.variant);
            if !args.filter.iter().all(|part| name.contains(part.as_str())) {
                continue;
            }
            count += 1;
            if args.check
                && let Err(reason) = block_on(check(&gpu, &case))?
            {
                bail!("{name}: {reason}");
            }
            let seconds = measure(args, &gpu, &case, rotate)?;
            let (bandwidth, flops) = (case.bytes as f64 / seconds, case.flops as f64 / seconds);
            if args.json {
                let line = json!({
                    "device": device, "kernel": kernel.name, "case": case.label, "variant": case.variant.to_string(),
                    "seconds": seconds, "bytes": case.bytes, "flops": case.flops, "copy_bytes_per_second": copy,
                });
                println!("{line}");
            } else {
                let (us, share) = (seconds * 1e6, 100.0 * bandwidth / copy);
                println!("{us:>10.1} {:>9.1} {:>10.1} {share:>5.1}%  {name}", bandwidth * 1e-9, flops * 1e-9);
            }
        }
    }
    if count == 0 {
        bail!("no case matches {:?}", args.filter);
    }
    Ok(())
}

/// Seconds that one dispatch of the case takes, the median of some passes.
fn measure(args: &Args, gpu: &Gpu, case: &Case, rotate: u64) -> Result<f64> {
    let host = (case.buffers)();
    let set_bytes: u64 = host.iter().map(|buffer| 4 * buffer.words.len() as u64).sum();
    let copies = (rotate / set_bytes.max(1)).clamp(1, 64);
    let mut sets: Vec<Vec<Buffer<u32>>> = Vec::new();
    for _ in 0..copies {
        sets.push(host.iter().map(|buffer| gpu.upload(&buffer.words)).collect::<webgpu_kernels::Result<_>>()?);
    }
    drop(host);

    let mut recorder = Recorder::new(gpu).without_early_submission();
    let timer = PassTimer::new(gpu)?;
    let mut pass = |dispatches: usize| -> Result<f64> {
        for i in 0..dispatches {
            (case.record)(&mut recorder, &sets[i % sets.len()]);
        }
        match &timer {
            Some(timer) => {
                recorder.submit_timed(timer);
                Ok(block_on(timer.seconds(&mut recorder))? / dispatches as f64)
            }
            None => {
                let start = Instant::now();
                recorder.submit();
                block_on(recorder.read(&sets[0][0].slice(0, 1))?)?;
                Ok(start.elapsed().as_secs_f64() / dispatches as f64)
            }
        }
    };
    // Compiles, touches all memory, and tells how many fill a pass.
    pass(sets.len())?;
    let estimate = pass(sets.len())?.max(1e-7);
    let dispatches = ((args.pass_ms * 1e-3 / estimate) as usize).clamp(1, 2000);
    let mut seconds = (0..args.repeat.max(1)).map(|_| pass(dispatches)).collect::<Result<Vec<_>>>()?;
    seconds.sort_by(f64::total_cmp);
    Ok(seconds[seconds.len() / 2])
}
