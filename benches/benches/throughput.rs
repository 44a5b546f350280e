//! Prefill and decode in tokens per second, of the demo model or of a published shape with random weights. `chat-cli bench`
//! measures any model by the same function and has more options.
//!
//! `cargo bench -p benches --bench throughput [-- --shape llama-3.2-3b]`.

use std::process::ExitCode;

use anyhow::Result;
use chat_cli::{
    Machine, NumberTypes, Progress, Setup, Weights, bench_report,
    throughput::{Plan, measure},
};
use clap::Parser;
use command_line::{available_memory, cache_folder, hub_config, print_json, threads};
use infer_core::{DeviceChoice, OpenOptions, Tuning, block_on, ops::candle::CpuWeights};
use model_format::QuantFormat;
use model_hub::{Model, demo};
use tempfile::TempDir;
use weight_convert::{ConfigOptions, ConvertOptions, convert};

/// Measure prefill and decode of the demo model, or of a published shape.
#[derive(Parser)]
struct Args {
    /// Random weights of a published shape, such as smollm2-135m, instead of the demo model; an unknown name lists the shapes
    #[arg(long, value_name = "SHAPE")]
    shape: Option<String>,
    /// Quantization format
    #[arg(long, default_value = "q4f16_1", value_name = "FORMAT")]
    format: String,
    /// Prompt lengths to prefill; 0 for none
    #[arg(short, long, value_delimiter = ',', default_values_t = [512], value_name = "TOKENS")]
    prompt: Vec<usize>,
    /// Tokens to decode; 0 for none
    #[arg(short = 'n', long, value_delimiter = ',', default_values_t = [128], value_name = "TOKENS")]
    decode: Vec<usize>,
    /// Tokens in the cache before each run
    #[arg(short, long, value_delimiter = ',', default_values_t = [0], value_name = "TOKENS")]
    depth: Vec<usize>,
    /// Counted runs of each measurement
    #[arg(short, long, default_value_t = 3, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..))]
    repetitions: u16,
    #[arg(long, default_value = "auto", value_name = "DEVICE", help = DeviceChoice::HELP)]
    device: DeviceChoice,
    /// Print a JSON array, samples included
    #[arg(long)]
    json: bool,
    /// Passed by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

/// The demo model's weights were not downloaded.
#[derive(Debug, thiserror::Error)]
#[error("the weights of the demo model are not in the cache")]
struct NotFetched;

const NOT_FETCHED_HINT: &str = "run `cargo run --release -p benches --bin fetch-demo-weights` once, or measure a shape with random \
                                weights: `-- --shape smollm2-135m`";

fn main() -> ExitCode {
    let done = run(&Args::parse());
    threads::finish();
    benches::exit_with_hint(done, |cause| cause.downcast_ref::<NotFetched>().map(|_| NOT_FETCHED_HINT.into()))
}

fn run(args: &Args) -> Result<()> {
    let machine = Machine {
        free_memory: available_memory(),
        cache_folder: cache_folder("chat-cli"),
        spawn: threads::spawn,
        threads: threads::count(),
    };
    let setup = block_on(Setup::new(args.device.clone(), OpenOptions::default(), Tuning::FirstUse, machine))?;
    // The folder of the converted demo model, removed at the end.
    let folder = tempfile::tempdir()?;
    let (name, weights) = match &args.shape {
        Some(shape) => (format!("{shape} {}", args.format), Weights::random(shape, &args.format)?),
        None => (format!("{} {}", demo::NAME, args.format), demo_weights(&args.format, &folder)?),
    };
    let plan = Plan {
        prompt: args.prompt.clone(),
        decode: args.decode.clone(),
        depth: args.depth.clone(),
        repetitions: args.repetitions.into(),
        roofline: false,
    };
    let types = NumberTypes { cache: None, cpu_weights: CpuWeights::Integer };
    let (subject, tests) = block_on(measure(name, &weights, &setup, types, &plan, &mut Messages))?;
    match args.json {
        true => print_json(&bench_report::json(&subject, &tests, None))?,
        false => print!("{}", bench_report::markdown(&subject, &tests, None)),
    }
    Ok(())
}

/// The demo model, converted to `format` in `folder`.
fn demo_weights(format: &str, folder: &TempDir) -> Result<Weights> {
    let hub = hub_config()?;
    let path = demo::cached_gguf(&hub).ok_or(NotFetched)?;
    let checkpoint = model_hub::open(&path.to_string_lossy(), &hub, &mut ())?.into_checkpoint()?;
    let config = ConfigOptions { conv_template: Some("chatml".into()), ..ConfigOptions::default() };
    let options = ConvertOptions { config, ..ConvertOptions::default() };
    convert(checkpoint.as_ref(), QuantFormat::by_name(format)?, &options, folder.path(), &mut ())?;
    Ok(Weights::Files(Model::Mlc(folder.path().into())))
}

/// Prints messages to stderr; draws no bars.
struct Messages;

impl Progress for Messages {
    fn message(&mut self, text: &str) {
        eprintln!("{text}");
    }
}

impl infer_core::Progress for Messages {
    fn loaded(&mut self, _done: u64, _total: u64) {}
}
