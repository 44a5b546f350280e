//! The commands: from flags to the library, and from its reports to the terminal.

mod args;
mod bars;
mod source;

use std::{
    path::Path,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::{Context, Result, bail};
use model_format::QuantFormat;
use weight_convert::{ConfigReport, ConfigSource, WeightsReport, convert, convert_weight, gen_config, inspect, verify};

pub use args::Args;
use args::{Command, ConvertArgs, ConvertWeightArgs, GenConfigArgs, InspectArgs, VerifyArgs};
use bars::Bars;

/// Whether the user has asked to stop.
#[derive(Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Whether the user has asked to stop.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// The first Ctrl-C asks, the second ends the process.
pub fn stop_on_ctrl_c() -> Stop {
    let stop = Stop::default();
    let flag = stop.clone();
    let handler = move || {
        if flag.0.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
    };
    // Without a handler Ctrl-C ends the process at once, and the next run clears away what it left.
    let _ = ctrlc::set_handler(handler);
    stop
}

/// What the user can do about an error, wherever it came from.
pub fn hint(error: &anyhow::Error) -> Option<String> {
    error.chain().find_map(|cause| {
        if let Some(error) = cause.downcast_ref::<weight_convert::Error>() {
            error.hint()
        } else if let Some(error) = cause.downcast_ref::<model_hub::Error>() {
            error.hint()
        } else {
            cause.downcast_ref::<model_format::Error>()?.hint()
        }
    })
}

/// Runs a command.
pub fn run(args: Args, stop: &Stop) -> Result<ExitCode> {
    let mut bars = Bars::new(stop.clone());
    match args.command {
        Command::Convert(args) => run_convert(&args, &mut bars)?,
        Command::ConvertWeight(args) => run_convert_weight(&args, &mut bars)?,
        Command::GenConfig(args) => run_gen_config(&args, &mut bars)?,
        Command::Verify(args) => return run_verify(&args, &mut bars),
        Command::Inspect(args) => run_inspect(&args)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn run_convert(args: &ConvertArgs, bars: &mut Bars) -> Result<()> {
    let format = QuantFormat::by_name(&args.quantization)?;
    let checkpoint = source::open(&args.source, bars)?;
    let report = convert(checkpoint.as_ref(), format, &args.config.options(), &args.output, bars)?;
    bars.clear();
    print_weights(&report.weights, &args.output);
    print_config(&report.config);
    Ok(())
}

fn run_convert_weight(args: &ConvertWeightArgs, bars: &mut Bars) -> Result<()> {
    let format = QuantFormat::by_name(&args.quantization)?;
    if args.lora_adapter.is_some() {
        bail!("merging a LoRA adapter is not supported: merge it into the checkpoint first");
    }
    let checkpoint = source::open_weights(args, bars)?;
    let report = convert_weight(checkpoint.as_ref(), format, &args.output, bars)?;
    bars.clear();
    print_weights(&report, &args.output);
    Ok(())
}

fn run_gen_config(args: &GenConfigArgs, bars: &mut Bars) -> Result<()> {
    let format = QuantFormat::by_name(&args.quantization)?;
    let mut source = match source::config_folder(&args.config) {
        Some(folder) => ConfigSource::folder(&folder)?,
        None => ConfigSource::of(source::open(&args.config, bars)?.as_ref())?,
    };
    source.config_json = source::with_model_type(source.config_json, &args.model_type)?;
    let report = gen_config(&source, format, &args.options.options(), &args.output)?;
    bars.clear();
    print_config(&report);
    Ok(())
}

fn run_verify(args: &VerifyArgs, bars: &mut Bars) -> Result<ExitCode> {
    let checkpoint = source::open(&args.source, bars)?;
    let verification = verify(checkpoint.as_ref(), &args.folder, bars)?;
    bars.clear();
    let width = verification.params.iter().map(|p| p.name.len()).max().unwrap_or(0);
    for check in &verification.params {
        let verdict = match check.different {
            0 if check.lossless => "equal to the checkpoint".to_owned(),
            0 => "equal to a new conversion".to_owned(),
            n if check.passes() => format!("like a new conversion, but for {n} of {} values", check.values),
            n => format!("DIFFERENT in {n} of {} values", check.values),
        };
        println!("{:width$}  max error {:<12}  {verdict}", check.name, format!("{:.3e}", check.max_error));
    }
    let failures = verification.failures().count();
    let lossless = verification.params.iter().filter(|p| p.lossless).count();
    println!(
        "{} parameters, {lossless} of them to be kept without loss, {failures} different",
        verification.params.len()
    );
    Ok(if failures == 0 { ExitCode::SUCCESS } else { ExitCode::from(3) })
}

fn run_inspect(args: &InspectArgs) -> Result<()> {
    let contents = inspect(&args.folder)?;
    if let Some(config) = &contents.chat_config {
        let template = config.value["conv_template"]["name"].as_str().unwrap_or("none");
        println!("model type         {}", config.model_type);
        println!("quantization       {}", config.quantization);
        println!("context            {}", config.context_window_size);
        println!("conversations      {template}");
        println!("tokenizer          {}", config.tokenizer_files.join(", "));
    }
    let records = || contents.cache.shards.iter().flat_map(|shard| &shard.records);
    println!("tensors            {}", records().count());
    println!("bytes              {}", records().map(|r| r.nbytes).sum::<usize>());
    for shard in &contents.cache.shards {
        println!("{}  {} bytes, {} tensors", shard.data_path, shard.nbytes, shard.records.len());
        if args.tensors {
            for r in &shard.records {
                println!("  {:>10}  {:8}  {:?}  {}", r.byte_offset, r.dtype.to_string(), r.shape, r.name);
            }
        }
    }
    Ok(())
}

fn print_weights(report: &WeightsReport, out: &Path) {
    println!(
        "wrote {} tensors in {} shards to `{}`: {:.1} MB, {:.3} bits per weight",
        report.records,
        report.shards,
        out.display(),
        report.param_bytes as f64 / 1e6,
        report.bits_per_param
    );
    if !report.lossless.is_empty() || !report.rounded.is_empty() {
        println!("{} matrices keep the values of the GPTQ checkpoint exactly", report.lossless.len());
    }
    if !report.rounded.is_empty() {
        println!(
            "rounded to nearest, because the GPTQ checkpoint has them in floating point: {}",
            some(&report.rounded)
        );
    }
    if !report.unused.is_empty() {
        println!("not used: {}", some(&report.unused));
    }
}

fn print_config(report: &ConfigReport) {
    let how = if report.inferred { " (told from the checkpoint)" } else { "" };
    println!("conversation template `{}`{how}, tokenizer: {}", report.conv_template, report.tokenizer_files.join(", "));
    for note in &report.notes {
        println!("note: {note}");
    }
}

/// The first names of a list that may be long.
fn some(names: &[String]) -> String {
    const SHOWN: usize = 8;
    let shown = names.iter().take(SHOWN).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN { format!("{shown} and {} more", names.len() - SHOWN) } else { shown }
}

/// Reads a JSON object, for what the command changes in config.json.
fn parse_object(text: &str) -> Result<serde_json::Map<String, serde_json::Value>> {
    serde_json::from_str(text).context("`config.json` is not a JSON object")
}
