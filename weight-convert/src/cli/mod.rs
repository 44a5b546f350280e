//! The commands: from flags to the library, and from its reports to the terminal.

mod args;
mod bars;
mod report;
mod source;

use std::{
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::{Context, Result, bail};
use model_format::QuantFormat;
use weight_convert::{ConfigSource, ConvertOptions, convert, convert_weight, gen_config, inspect, preview, verify};

pub use args::Args;
use args::{Command, ConvertArgs, ConvertWeightArgs, GenConfigArgs, InspectArgs, VerifyArgs};
use bars::Bars;
use report::Limits;

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

/// Whether an error is nothing but the end that the user asked for.
pub fn is_interruption(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        matches!(cause.downcast_ref(), Some(weight_convert::Error::Cancelled))
            || matches!(cause.downcast_ref(), Some(model_hub::Error::Cancelled))
    })
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
    let (out, overwrite) = (&args.output.folder, args.output.overwrite);
    let options = ConvertOptions { weights: args.weights.options(overwrite), config: args.config.options(overwrite) };
    if args.weights.dry_run {
        let (weights, config) = preview(checkpoint.as_ref(), format, &options.weights, Some(&options.config))?;
        bars.clear();
        report::preview(&weights, config.as_ref(), out, args.report.json);
        return Ok(());
    }
    let report = convert(checkpoint.as_ref(), format, &options, out, bars)?;
    bars.clear();
    if args.report.json {
        report::json(&report);
    } else {
        report::weights(&report.weights, out);
        report::config(&report.config);
    }
    Ok(())
}

fn run_convert_weight(args: &ConvertWeightArgs, bars: &mut Bars) -> Result<()> {
    let format = QuantFormat::by_name(&args.quantization)?;
    if args.lora_adapter.is_some() {
        bail!("merging a LoRA adapter is not supported: merge it into the checkpoint first");
    }
    let checkpoint = source::open_weights(args, bars)?;
    let out = &args.output.folder;
    let options = args.weights.options(args.output.overwrite);
    if args.weights.dry_run {
        let (weights, _) = preview(checkpoint.as_ref(), format, &options, None)?;
        bars.clear();
        report::preview(&weights, None, out, args.report.json);
        return Ok(());
    }
    let report = convert_weight(checkpoint.as_ref(), format, &options, out, bars)?;
    bars.clear();
    if args.report.json {
        report::json(&report);
    } else {
        report::weights(&report, out);
    }
    Ok(())
}

fn run_gen_config(args: &GenConfigArgs, bars: &mut Bars) -> Result<()> {
    let format = QuantFormat::by_name(&args.quantization)?;
    let mut source = match source::config_folder(&args.config) {
        Some(folder) => ConfigSource::folder(&folder)?,
        None => ConfigSource::of(source::open(&args.config, bars)?.as_ref())?,
    };
    source.config_json = source::with_model_type(source.config_json, &args.model_type)?;
    let report = gen_config(&source, format, &args.options.options(args.output.overwrite), &args.output.folder)?;
    bars.clear();
    if args.report.json {
        report::json(&report);
    } else {
        report::config(&report);
    }
    Ok(())
}

fn run_verify(args: &VerifyArgs, bars: &mut Bars) -> Result<ExitCode> {
    let format = args.quantization.as_deref().map(QuantFormat::by_name).transpose()?;
    let checkpoint = source::open(&args.source, bars)?;
    let verification = verify(checkpoint.as_ref(), &args.folder, format, bars)?;
    bars.clear();
    let limits = Limits { max_error: args.max_error, mean_error: args.mean_error };
    let failures = verification.params.iter().filter(|check| !check.passes() || limits.is_passed(check)).count();
    if args.report.json {
        report::json(&serde_json::json!({ "params": verification.params, "failures": failures }));
    } else {
        report::verification(&verification, &limits, failures);
    }
    Ok(if failures == 0 { ExitCode::SUCCESS } else { ExitCode::from(3) })
}

fn run_inspect(args: &InspectArgs) -> Result<()> {
    let contents = inspect(&args.folder)?;
    if args.report.json {
        report::json(&report::contents_json(&contents));
    } else {
        report::contents(&contents, args.tensors);
    }
    Ok(())
}

/// Reads a JSON object, for what the command changes in config.json.
fn parse_object(text: &str) -> Result<serde_json::Map<String, serde_json::Value>> {
    serde_json::from_str(text).context("`config.json` is not a JSON object")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A transparent error hands on the chain of what is in it, so both forms are looked at.
    #[test]
    fn only_the_interruption_itself_is_quiet() {
        let cancelled = anyhow::Error::from(weight_convert::Error::Cancelled).context("in the middle");
        assert!(is_interruption(&cancelled));
        assert!(is_interruption(&model_hub::Error::Cancelled.into()));
        let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
        let full = model_format::Error::Io { action: "write", path: "a".into(), source: full };
        assert!(!is_interruption(&weight_convert::Error::Format(full).into()));
        assert!(!is_interruption(&anyhow::anyhow!("stopped")));
    }
}
