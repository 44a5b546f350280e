//! Compiles our kernels for absent GPUs and predicts their speed. `cargo xtask hardware` runs it.
//!
//! - AMD: Mesa's RADV opens a device without hardware. Compiles every kernel variant that a Radeon 780M, an RX 6600, a
//!   Renoir or a Vega would run. The driver reports registers, spills, LDS and occupancy (`compiler.rs`).
//! - Direct3D 12 and Metal: translates every variant to HLSL and MSL (`shader.rs`). DXC compiles the HLSL (`dxc.rs`).
//! - A cost model (`assembly.rs`, `trips.rs`, `cost.rs`) predicts a model's speed and chooses presets (`presets.rs`).
//!
//! Not covered, because no compiler is available: Intel, NVIDIA (RADV compiles its SPIR-V for subgroups of 32), Metal,
//! FXC.
//!
//! Exits with code 1 if a compiler rejects a variant, if a variant spills registers, or if a device does not get a
//! kernel that it should. A compiler may abort, so each device has a child process. A variant that kills its child is a
//! failure; the child restarts without it.

mod assembly;
mod check;
mod compiler;
mod cost;
mod devices;
mod dxc;
mod presets;
mod report;
mod shader;
mod trips;

use std::{
    env,
    ffi::OsString,
    fs,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Command, ExitCode, Stdio},
    sync::Mutex,
    thread,
};

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use serde_json::json;

use check::{Message, Report};
use devices::{DEVICES, Device};

/// Compiles the kernels for absent GPUs and predicts their speed.
#[derive(Parser)]
struct Arguments {
    /// Vulkan manifest of RADV from a Mesa before 26.1; without it, AMD devices are skipped
    #[arg(long, value_name = "FILE")]
    radv: Option<PathBuf>,
    /// Folder of the libraries that RADV needs
    #[arg(long, value_name = "FOLDER")]
    libraries: Option<PathBuf>,
    /// DXC's library; without it, HLSL is generated but not compiled
    #[arg(long, value_name = "FILE")]
    dxc: Option<OsString>,
    /// Write all results to this JSON file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// List every variant with its registers
    #[arg(long)]
    all: bool,
    /// Check only this device; may be repeated
    #[arg(long, value_name = "NAME")]
    device: Vec<String>,
    /// Choose presets by the cost model and write them to this file
    #[arg(long, value_name = "FILE")]
    presets: Option<PathBuf>,
    /// Commit to name in the presets
    #[arg(long, value_name = "COMMIT", default_value = "an unknown commit")]
    commit: String,
    #[command(subcommand)]
    child: Option<Child>,
}

/// The job of a child process.
#[derive(Subcommand)]
enum Child {
    /// Compiles for a device
    #[command(hide = true)]
    Device {
        name: String,
        #[arg(long)]
        presets: bool,
        #[arg(long)]
        skip: Vec<String>,
    },
    /// Translates a part of all variants to HLSL and MSL
    #[command(hide = true)]
    Texts {
        part: usize,
        parts: usize,
        #[arg(long)]
        dxc: Option<OsString>,
        #[arg(long)]
        skip: Vec<String>,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match &arguments.child {
        Some(child) => run_child(child).map(|()| true),
        None => run(&arguments),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run_child(child: &Child) -> Result<()> {
    let report = match child {
        Child::Device { name, presets, skip } => check::device(Device::by_name(name)?, skip, *presets)?,
        Child::Texts { part, parts, dxc, skip } => check::texts(*part, *parts, dxc.as_ref(), skip)?,
    };
    check::send(&Message::Done(Box::new(report)))
}

/// Runs all children and prints their reports. Returns true if nothing failed.
fn run(arguments: &Arguments) -> Result<bool> {
    let threads = thread::available_parallelism().map_or(1, |threads| threads.get());
    let is_meant =
        |device: &&Device| arguments.device.is_empty() || arguments.device.iter().any(|name| name == device.name);
    arguments.device.iter().try_for_each(|name| Device::by_name(name).map(|_| ()))?;
    let mut jobs: Vec<Vec<OsString>> = Vec::new();
    if arguments.radv.is_some() {
        jobs.extend(DEVICES.iter().filter(is_meant).map(|device| {
            let mut words: Vec<OsString> = vec!["device".into(), device.name.into()];
            words.extend(arguments.presets.is_some().then(|| "--presets".into()));
            words
        }));
    } else {
        println!("skipped: devices of AMD and NVIDIA, because RADV is not available");
    }
    if arguments.device.is_empty() && arguments.presets.is_none() {
        jobs.extend((0..threads).map(|part| {
            let mut words: Vec<OsString> = vec!["texts".into(), part.to_string().into(), threads.to_string().into()];
            words.extend(arguments.dxc.iter().flat_map(|file| ["--dxc".into(), file.clone()]));
            words
        }));
        if arguments.dxc.is_none() {
            println!("skipped: compiling HLSL, because DXC is not available");
        }
    }
    let reports = in_threads(threads, &jobs, |words| child(arguments, words))?;
    let mut failures = Vec::new();
    for report in &reports {
        print!("{}", report.table(arguments.all));
        failures.extend(report.failures());
    }
    println!("\nnot covered: the compilers of Intel, NVIDIA and Apple, and FXC; no kernel was executed");
    if let Some(file) = &arguments.json {
        let found = json!({ "devices": reports.iter().map(Report::json).collect::<Vec<_>>(), "failures": failures });
        fs::write(file, format!("{found:#}\n")).with_context(|| format!("cannot write `{}`", file.display()))?;
    }
    if let Some(file) = &arguments.presets {
        let modeled = reports.into_iter().filter(|report| !report.forecasts.is_empty());
        let rules = modeled.map(|report| Ok((Device::by_name(&report.name)?, report.rules))).collect::<Result<_>>()?;
        presets::write(file, &arguments.commit, rules)?;
    }
    failures.iter().for_each(|failure| println!("FAILED {failure}"));
    Ok(failures.is_empty())
}

/// Runs `work` for all jobs on `threads` threads. Returns the results in the order of the jobs.
fn in_threads<T: Send>(
    threads: usize,
    jobs: &[Vec<OsString>],
    work: impl Fn(&[OsString]) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let (next, done) = (Mutex::new(0..jobs.len()), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..threads.min(jobs.len()) {
            scope.spawn(|| {
                loop {
                    let Some(job) = next.lock().expect("no thread panics").next() else { return };
                    let result = work(&jobs[job]);
                    done.lock().expect("no thread panics").push((job, result));
                }
            });
        }
    });
    let mut done = done.into_inner().expect("no thread panics");
    done.sort_by_key(|(job, _)| *job);
    done.into_iter().map(|(_, result)| result).collect()
}

/// Runs a child process. If a variant kills it, restarts it without that variant.
fn child(arguments: &Arguments, words: &[OsString]) -> Result<Report> {
    let mut fatal: Vec<String> = Vec::new();
    loop {
        let mut command = Command::new(env::current_exe()?);
        command.args(words).stdout(Stdio::piped()).stderr(Stdio::piped());
        fatal.iter().for_each(|label| _ = command.args(["--skip", label]));
        if let (true, Some(manifest)) = (words[0] == "device", &arguments.radv) {
            let device = Device::by_name(&words[1].to_string_lossy())?;
            command.env("VK_DRIVER_FILES", manifest).env("VK_ICD_FILENAMES", manifest);
            command.env("RADV_FORCE_FAMILY", device.family).env("MESA_SHADER_CACHE_DISABLE", "true");
            command.envs(arguments.libraries.iter().map(|folder| ("LD_LIBRARY_PATH", folder)));
        }
        let mut running = command.spawn().context("cannot start a child process")?;
        let stderr = running.stderr.take().expect("stderr is piped");
        let stderr = thread::spawn(move || std::io::read_to_string(stderr).unwrap_or_default());
        let mut at = None;
        for line in BufReader::new(running.stdout.take().expect("stdout is piped")).lines() {
            match serde_json::from_str(&line?) {
                Ok(Message::Compiling(label)) => at = Some(label),
                Ok(Message::Done(mut report)) => {
                    running.wait()?;
                    report.faults.extend(fatal.iter().map(|label| format!("{label}: the compiler crashed")));
                    return Ok(*report);
                }
                // Output of the driver.
                Err(_) => {}
            }
        }
        let status = running.wait()?;
        let stderr = stderr.join().expect("reading does not panic");
        match at {
            Some(label) if !fatal.contains(&label) => fatal.push(label),
            _ => bail!("the child process for `{}` ended with {status}: {}", words[1].display(), stderr.trim()),
        }
    }
}
