//! [`run`]: each command, from its flags to the library and from the result to the report.

use std::process::ExitCode;

use anyhow::{Result, bail};
use command_line::{Bars, Stop, print_json};
use model_format::QuantFormat;
use weight_convert::{ConfigSource, ConvertOptions, convert, convert_weight, gen_config, inspect, preview, verify};

use super::{
    args::{Args, Command, ConvertArgs, ConvertWeightArgs, GenConfigArgs, InspectArgs, VerifyArgs},
    progress::ConversionBar,
    report::{self, Limits},
    source,
};

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
        report::preview(&weights, config.as_ref(), out, args.report.json)?;
        return Ok(());
    }
    let report = convert(checkpoint.as_ref(), format, &options, out, &mut ConversionBar(bars))?;
    bars.clear();
    if args.report.json {
        print_json(&report)?;
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
        report::preview(&weights, None, out, args.report.json)?;
        return Ok(());
    }
    let report = convert_weight(checkpoint.as_ref(), format, &options, out, &mut ConversionBar(bars))?;
    bars.clear();
    if args.report.json {
        print_json(&report)?;
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
        print_json(&report)?;
    } else {
        report::config(&report);
    }
    Ok(())
}

fn run_verify(args: &VerifyArgs, bars: &mut Bars) -> Result<ExitCode> {
    let format = args.quantization.as_deref().map(QuantFormat::by_name).transpose()?;
    let checkpoint = source::open(&args.source, bars)?;
    let verification = verify(checkpoint.as_ref(), &args.folder, format, &mut ConversionBar(bars))?;
    bars.clear();
    let limits = Limits { max_error: args.max_error, mean_error: args.mean_error };
    let failures = verification.params.iter().filter(|check| !check.passes() || limits.are_exceeded(check)).count();
    if args.report.json {
        print_json(&serde_json::json!({ "params": verification.params, "failures": failures }))?;
    } else {
        report::verification(&verification, &limits, failures);
    }
    Ok(if failures == 0 { ExitCode::SUCCESS } else { ExitCode::from(3) })
}

fn run_inspect(args: &InspectArgs) -> Result<()> {
    let contents = inspect(&args.folder)?;
    if args.report.json {
        print_json(&report::contents_json(&contents))?;
    } else {
        report::contents(&contents, args.tensors);
    }
    Ok(())
}
