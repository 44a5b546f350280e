//! [`run`]: opens the checkpoint, quantizes it, measures the result, and converts it to an MLC folder.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use clap::{CommandFactory, error::ErrorKind};
use command_line::{Stop, hub_config, peak_memory};
use gptq_quant::{
    CheckpointWriter, Run, Settings, check_weights, quantize_layers, quantized_params, unquantized_config,
};
use infer_core::block_on;
use model_format::{Checkpoint, DecoderConfig, QuantFormat, SafetensorsCheckpoint};
use weight_convert::{
    ConfigOptions, ConfigSource, ConvertOptions, WeightOptions, WeightsReport, check_output, convert, gen_config,
};

use super::{
    args::{Args, Contradiction},
    device::{Device, with_ops},
    progress::{RunProgress, gib},
    report,
    texts::Sources,
};

/// The format of `--to-mlc`.
const MLC_FORMAT: &str = "q4f16_1";

/// Runs the command.
pub fn run(args: &Args, stop: &Stop) -> Result<()> {
    let settings = args
        .settings()
        .unwrap_or_else(|Contradiction(message)| Args::command().error(ErrorKind::ArgumentConflict, message).exit());
    let mut progress = RunProgress::new(stop.clone());
    let hub = hub_config()?;
    let checkpoint = model_hub::open(&args.model, &hub, progress.bars())?.into_checkpoint()?;
    let checkpoint = checkpoint.as_ref();
    let config = unquantized_config(checkpoint)?;
    progress.expect(&config, &settings)?;

    // Report errors of the output folder and the calibration text before the long work.
    let mut writer = CheckpointWriter::create_over(checkpoint, &args.output, &settings, args.overwrite)?;
    let mlc_format = QuantFormat::by_name(MLC_FORMAT)?;
    let mlc_config = ConfigOptions { conv_template: args.conv_template.clone(), ..ConfigOptions::default() };
    let mlc_weights = WeightOptions { overwrite: args.overwrite, ..WeightOptions::default() };
    let mlc_options = ConvertOptions { weights: mlc_weights, config: mlc_config };
    if let Some(folder) = &args.to_mlc {
        check_output(folder, args.overwrite)?;
        check_conversion(&config, &settings, mlc_format)?;
        let trial = tempfile::tempdir().context("cannot create a temporary folder")?;
        gen_config(&ConfigSource::of(checkpoint)?, mlc_format, &mlc_options.config, trial.path())?;
    }
    let device = Device::open(&args.device, !args.no_cooperative_matrix, &progress)?;
    let sources = Sources::read(args, checkpoint, &hub, &mut progress)?;
    let evaluated = sources.evaluated();
    let float = check_weights(checkpoint)?;
    let run = Run::new(&float, sources.description(), device.description(), &settings);

    if !args.restart && writer.is_made(&run)? {
        println!("`{}` is what this command makes; --restart makes it again", args.output.display());
        // Releases the lock of the folder.
        drop(writer);
    } else {
        if let Some((what, was, is)) = writer.changed_step(&run) {
            progress.say(&format!("making `{}` anew: `{what}` was {was}, now it is {is}", args.output.display()));
        }
        writer.resume(&run, args.restart)?;
        let done = quantize(args, checkpoint, &settings, &device, sources, writer, &mut progress);
        done.inspect_err(|_| progress.clear())?;
        println!("wrote `{}`", args.output.display());
    }

    if let Some(evaluated) = evaluated {
        // Without matrix units: both models run in f32.
        let device = Device::open(&args.device, false, &progress)?;
        let measured = report::measure(args, &settings, checkpoint, &float, &device, &evaluated, &mut progress);
        measured.inspect_err(|_| progress.clear())?;
    }
    if let Some(folder) = &args.to_mlc {
        let quantized = SafetensorsCheckpoint::open(&args.output)?;
        let report = convert(&quantized, mlc_format, &mlc_options, folder, &mut progress)?;
        progress.clear();
        print_conversion(&report.weights, folder);
    }
    Ok(())
}

/// Quantizes all matrices that the output does not have yet, and completes the folder.
fn quantize(
    args: &Args,
    checkpoint: &dyn Checkpoint,
    settings: &Settings,
    device: &Device,
    sources: Sources<'_>,
    mut writer: CheckpointWriter<'_>,
    progress: &mut RunProgress,
) -> Result<()> {
    let texts = sources.complete(checkpoint, settings, device, &mut writer, progress)?;
    let windows = &texts.calibration;
    if texts.sources.len() > 1 {
        let parts = texts.sources.iter().map(|(name, windows)| format!("{windows} of `{name}`"));
        progress.say(&parts.collect::<Vec<_>>().join(", "));
    }
    progress.say(&format!("calibrating on {} windows of {} tokens, on {device}", windows.len(), windows.seq_len()));
    let done = writer.reports().count();
    if done > 0 {
        progress.say(&format!("resuming: {done} matrices are done"));
    }
    let timings =
        with_ops!(device, ops => block_on(quantize_layers(ops, checkpoint, windows, settings, progress, &mut writer)))?;
    let report = report::report(args, settings, device, &texts, &writer, &timings);
    report.files().into_iter().for_each(|(name, content)| writer.attach(name, content));
    writer.finish()?;
    progress.clear();
    let total = timings.total().as_secs_f64();
    let share = |part: Duration| format!("{:.0} %", part.as_secs_f64() / total * 100.0);
    progress.say(&format!(
        "{total:.1} seconds: forward {}, Hessians {}, factors {}, codes and scales {}, report {}{}",
        share(timings.forward),
        share(timings.hessian),
        share(timings.factoring),
        share(timings.quantization),
        share(timings.report),
        peak_memory().map_or(String::new(), |peak| format!("; peak memory {:.2} GiB", gib(peak)))
    ));
    Ok(())
}

fn print_conversion(weights: &WeightsReport, folder: &Path) {
    let rounded = match weights.rounded.len() {
        0 => String::new(),
        count => format!(", {count} rounded to nearest"),
    };
    println!(
        "wrote `{}`: {:.1} MB, {:.3} bits per weight, {} matrices without loss{rounded}",
        folder.display(),
        weights.param_bytes as f64 / 1e6,
        weights.bits_per_param,
        weights.lossless.len()
    );
}

/// Refuses matrices that the format of `--to-mlc` cannot store without loss, before they are computed.
fn check_conversion(config: &DecoderConfig, settings: &Settings, format: &QuantFormat) -> Result<()> {
    for (param, options) in quantized_params(config, settings)? {
        ensure!(
            options.converts_to(format),
            "with these options `{}` does not fit into `{}`, which needs symmetric codes of at most 4 bits, groups of a \
             multiple of 32, and static groups with act-order; `--grid q4f16_1` sets all of these",
            param.name,
            format.name
        );
    }
    Ok(())
}
