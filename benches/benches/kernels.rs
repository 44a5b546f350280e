//! Every kernel alone, in GB/s and GFLOP/s by the bytes and operations of its case, compared with a copy on the device.
//!
//! `cargo bench -p benches --bench kernels -- gemv --device gpu`. Times are from GPU timestamps around one compute pass of many
//! dispatches. The dispatches cycle through copies of the case's inputs that together exceed the device's cache, so weights come
//! from memory, as in a model. All dispatches write to the same output, so each waits for the previous one, as in a model.
//!
//! `--choices gemv`, `gemv_chain` or `attention` times every candidate for the shapes of a decoded token, the fastest first.

use std::{process::ExitCode, time::Instant};

use anyhow::{Context, Result, bail};
use clap::Parser;
use infer_core::{DeviceChoice, block_on};
use serde_json::json;
use webgpu_kernels::{
    Case, CaseSet, Gpu, KERNELS, Kernel, KvDtype, WeightFormat,
    attention::{self, AttentionShape},
    case_check::check,
    gemv::{self, GemvKind, GemvShape},
    gemv_chain::{self, ChainShape, EndShape, Heads},
    gpu::{Buffer, DeviceType, OpenOptions, PassTimer, Recorder},
    kernel::{CaseBuffer, Purpose},
};

/// Measure every kernel alone.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Measure only cases whose line contains all of these words
    filter: Vec<String>,
    #[arg(long, default_value = "gpu", value_name = "DEVICE", help = DeviceChoice::HELP)]
    device: DeviceChoice,
    /// Use no subgroups, no f16, and WebGPU's default limits
    #[arg(long)]
    webgpu_defaults: bool,
    /// Measure the small cases of the tests instead of the large ones
    #[arg(long)]
    test_cases: bool,
    /// Check each case against its reference first; large cases take long on the host
    #[arg(long)]
    check: bool,
    /// Measured passes of each case; the result is the median
    #[arg(long, short, default_value_t = 5)]
    repeat: usize,
    /// Target duration of a pass in milliseconds
    #[arg(long, default_value_t = 100.0)]
    pass_ms: f64,
    /// Total size of the copies of a case's inputs in MiB [default: 256; 64 on a software device]
    #[arg(long)]
    rotate_mib: Option<u64>,
    /// Time every candidate for the shapes of decoding, instead of the cases
    #[arg(long)]
    choices: bool,
    /// Print one JSON object per case
    #[arg(long)]
    json: bool,
    /// Passed by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    benches::exit_with(run(&Args::parse()))
}

fn run(args: &Args) -> Result<()> {
    let options = if args.webgpu_defaults {
        OpenOptions { timestamps: true, ..OpenOptions::WEBGPU_DEFAULTS }
    } else {
        OpenOptions::default()
    };
    let opened = block_on(args.device.open(options))?;
    let gpu = opened.gpu.with_context(|| opened.note.unwrap_or_else(|| "the CPU has no kernels to measure".into()))?;
    let copy = block_on(gpu.copy_bandwidth())?;
    let device = format!("{} ({}, {})", gpu.summary().name, gpu.summary().backend, gpu.summary().driver);
    if !args.json {
        println!("{device}: copies {:.1} GB/s, read and written", copy * 1e-9);
        println!("{:>10} {:>9} {:>10} {:>6}  kernel, case [variant]", "us", "GB/s", "GFLOP/s", "copy");
    }
    let rotate = args.rotate_mib.unwrap_or(if gpu.summary().device_type == DeviceType::Cpu { 64 } else { 256 }) << 20;
    if args.choices {
        return candidates(args, &gpu, copy, rotate);
    }
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

/// Seconds per dispatch of the case: the median of several passes.
fn measure(args: &Args, gpu: &Gpu, case: &Case, rotate: u64) -> Result<f64> {
    let sets = Sets::new(gpu, case, rotate)?;
    sets.measure(args, gpu, case, f64::INFINITY)
}

/// Copies of the buffers of a case.
struct Sets(Vec<Vec<Buffer<u32>>>);

impl Sets {
    /// Copies of the inputs with `rotate` bytes in total. Outputs exist once, with double size, because candidates differ in size.
    fn new(gpu: &Gpu, case: &Case, rotate: u64) -> Result<Sets> {
        let host = (case.buffers)();
        let is_input = |buffer: &&CaseBuffer| buffer.purpose == Purpose::Input;
        let set_bytes: u64 = host.iter().filter(is_input).map(|buffer| 4 * buffer.words.len() as u64).sum();
        let copies = (rotate / set_bytes.max(1)).clamp(1, 64);
        let upload = |buffer: &CaseBuffer| {
            let mut words = buffer.words.clone();
            if buffer.purpose != Purpose::Input {
                words.resize(2 * words.len(), 0);
            }
            gpu.upload(&words)
        };
        let first = host.iter().map(upload).collect::<webgpu_kernels::Result<Vec<_>>>()?;
        let mut sets = vec![first];
        for _ in 1..copies {
            let shared = host.iter().zip(&sets[0]);
            let copy = |(buffer, first): (&CaseBuffer, &Buffer<u32>)| {
                if buffer.purpose == Purpose::Input { gpu.upload(&buffer.words) } else { Ok(first.clone()) }
            };
            sets.push(shared.map(copy).collect::<webgpu_kernels::Result<_>>()?);
        }
        Ok(Sets(sets))
    }

    /// Seconds per dispatch. If the first estimate exceeds `hopeless` seconds, returns it without further passes.
    fn measure(&self, args: &Args, gpu: &Gpu, case: &Case, hopeless: f64) -> Result<f64> {
        let sets = &self.0;
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
        // The first pass compiles and touches all memory; the second gives the estimate.
        pass(sets.len())?;
        let estimate = pass(sets.len())?.max(1e-7);
        if estimate > hopeless {
            return Ok(estimate);
        }
        let dispatches = ((args.pass_ms * 1e-3 / estimate) as usize).clamp(1, 2000);
        let mut seconds = (0..args.repeat.max(1)).map(|_| pass(dispatches)).collect::<Result<Vec<_>>>()?;
        seconds.sort_by(f64::total_cmp);
        Ok(seconds[seconds.len() / 2])
    }
}

/// Shapes of a decoded token of Llama 3.2 3B and 1B in q4f16_1, with their candidates.
fn shapes(gpu: &Gpu) -> Vec<(String, Vec<(String, &'static Kernel, Case)>)> {
    let format = WeightFormat::Group { bits: 4, group_size: 32 };
    let products = [
        (GemvKind::Swiglu, 16_384, 3072),
        (GemvKind::Add, 3072, 8192),
        (GemvKind::Rope, 5120, 3072),
        (GemvKind::Scaled, 5120, 3072),
        (GemvKind::Plain, 5120, 3072),
        (GemvKind::Add, 3072, 3072),
        (GemvKind::Scaled, 43_520, 3072),
        (GemvKind::Swiglu, 16_384, 2048),
        (GemvKind::Add, 2048, 8192),
        (GemvKind::Scaled, 3072, 2048),
        (GemvKind::Add, 2048, 2048),
    ];
    let mut shapes = Vec::new();
    for (kind, rows, cols) in products {
        let shape = GemvShape { format, rows, cols, batch: 1, kind };
        let case =
            |choice| (format!("{choice:?}"), gemv::kernel_of(kind), gemv::choice_case(gpu.caps(), &shape, choice));
        let cases = gemv::choices(gpu.caps(), &shape).into_iter().map(case).collect();
        shapes.push((format!("gemv {kind:?} {rows} x {cols}"), cases));
    }
    for (hidden, heads, head_dim) in [(3072, 24, 128), (2048, 32, 64)] {
        let end = Some(EndShape { attended: hidden, inner: 8192 });
        let shape = ChainShape { hidden, end, heads: Some(Heads { heads, kv_heads: 8, head_dim }) };
        for position in [64, 2048] {
            let cases = gemv_chain::choice_cases(gpu.caps(), &shape, position).into_iter();
            let cases = cases.map(|(choice, case)| {
                let kernel = if choice.is_some() { &gemv_chain::ATTENTION_KERNEL } else { &gemv::ADD_KERNEL };
                (format!("{choice:?}"), kernel, case)
            });
            shapes.push((format!("gemv_chain {hidden} after {position}"), cases.collect()));
        }
    }
    for (heads, kv_heads, head_dim) in [(24, 8, 128), (32, 8, 64)] {
        for keys in [64, 128, 256, 512, 1024, 2048, 8192] {
            let scale = 1.0 / (head_dim as f32).sqrt();
            let shape =
                AttentionShape { heads, kv_heads, head_dim, rotary_dim: head_dim, scale, soft_cap: None, window: None };
            let cases = attention::choice_cases(gpu.caps(), shape, keys, KvDtype::F16).into_iter();
            let cases = cases.map(|(choice, case)| {
                let kernel = if choice.teams.is_some() { &attention::TEAMS_KERNEL } else { &attention::DECODE_KERNEL };
                (format!("{choice:?}"), kernel, case)
            });
            shapes.push((format!("attention {heads}/{kv_heads} heads of {head_dim}, {keys} keys"), cases.collect()));
        }
    }
    shapes
}

/// Number of candidates to print per shape.
const PRINTED: usize = 12;

fn candidates(args: &Args, gpu: &Gpu, copy: f64, rotate: u64) -> Result<()> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    gpu.compile_on(|job| drop(std::thread::spawn(job)), threads);
    for (shape, cases) in shapes(gpu) {
        if !args.filter.iter().all(|part| shape.contains(part.as_str())) {
            continue;
        }
        let start = Instant::now();
        // Compile everything before the first timing.
        gpu.prepare(cases.iter().map(|(_, kernel, case)| (*kernel, case.variant.clone())));
        let sets = Sets::new(gpu, &cases[0].2, rotate)?;
        let mut recorder = Recorder::new(gpu);
        for (_, _, case) in &cases {
            (case.record)(&mut recorder, &sets.0[0]);
        }
        recorder.submit();
        let compiled = start.elapsed().as_secs_f64();
        let mut best = f64::INFINITY;
        let mut lines = Vec::new();
        for (i, (choice, _, case)) in cases.iter().enumerate() {
            let seconds = sets.measure(args, gpu, case, 1.5 * best)?;
            best = best.min(seconds);
            lines.push((seconds, i, choice));
        }
        lines.sort_by(|a, b| a.0.total_cmp(&b.0));
        let bytes = cases[0].2.bytes as f64;
        println!(
            "{shape}: {} candidates, {compiled:.1} s to compile, {:.1} s",
            cases.len(),
            start.elapsed().as_secs_f64()
        );
        for (place, (seconds, i, choice)) in lines.iter().enumerate() {
            // The first candidate is the default rule.
            if place < PRINTED || *i == 0 {
                let (us, rate) = (seconds * 1e6, bytes / seconds);
                let default = if *i == 0 { " (default)" } else { "" };
                println!("{us:>10.2} {:>9.1} {:>5.1}%  {choice}{default}", rate * 1e-9, 100.0 * rate / copy);
            }
        }
    }
    Ok(())
}
