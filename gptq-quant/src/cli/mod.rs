//! The command: from flags to the library, and from its reports to the terminal.

mod args;
mod bars;
mod device;
mod large_pages;
mod report;
mod texts;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use clap::{CommandFactory, error::ErrorKind};
use gptq_quant::{
    CheckpointWriter, Run, Settings, check_weights, quantize_layers, quantized_params, unquantized_config,
};
use infer_core::block_on;
use model_format::{Checkpoint, DecoderConfig, QuantFormat, SafetensorsCheckpoint};
use model_hub::HubConfig;
use weight_convert::{ConfigOptions, ConfigSource, ConvertOptions, WeightOptions, check_output, convert, gen_config};

pub use args::Args;
use bars::Bars;
use device::{Device, with_ops};
pub use large_pages::LargePages;
use texts::Sources;

/// The format of `--to-mlc`.
const MLC_FORMAT: &str = "q4f16_1";

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
    // Without a handler Ctrl-C ends the process at once; what it left has a temporary name.
    let _ = ctrlc::set_handler(handler);
    stop
}

/// Whether an error is nothing but the end that the user asked for.
pub fn is_interruption(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        matches!(cause.downcast_ref(), Some(gptq_quant::Error::Cancelled))
            || matches!(cause.downcast_ref(), Some(weight_convert::Error::Cancelled))
            || matches!(cause.downcast_ref(), Some(model_hub::Error::Cancelled))
    })
}

/// What the user can do about an error, wherever it came from.
pub fn hint(error: &anyhow::Error) -> Option<String> {
    error.chain().find_map(|cause| {
        if let Some(error) = cause.downcast_ref::<gptq_quant::Error>() {
            error.hint()
        } else if let Some(error) = cause.downcast_ref::<calib_data::Error>() {
            error.hint()
        } else if let Some(error) = cause.downcast_ref::<weight_convert::Error>() {
            error.hint()
        } else if let Some(error) = cause.downcast_ref::<model_hub::Error>() {
            error.hint()
        } else if let Some(error) = cause.downcast_ref::<infer_core::Error>() {
            error.hint()
        } else {
            cause.downcast_ref::<model_format::Error>()?.hint()
        }
    })
}

/// Quantizes.
pub fn run(args: &Args, stop: &Stop) -> Result<()> {
    let settings = args.settings().unwrap_or_else(|args::Contradiction(message)| {
        Args::command().error(ErrorKind::ArgumentConflict, message).exit()
    });
    let mut bars = Bars::new(stop.clone());
    let hub = HubConfig::from_vars(|name| std::env::var(name).ok())?;
    let checkpoint = model_hub::open(&args.model, &hub, &mut bars)?.into_checkpoint()?;
    let checkpoint = checkpoint.as_ref();
    let config = unquantized_config(checkpoint)?;
    bars.expect(&config, &settings)?;

    // Everything that can be wrong with the output or the text comes out before the long work.
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
    let device = Device::open(&args.device, !args.no_cooperative_matrix, &mut bars)?;
    let sources = Sources::read(args, checkpoint, &hub, &mut bars)?;
    let evaluated = sources.evaluated();
    let float = check_weights(checkpoint)?;
    let run = Run::new(&float, sources.description(), device.description(), &settings);

    if !args.restart && writer.is_made(&run)? {
        println!("`{}` is what this command makes; --restart makes it again", args.output.display());
        // It holds the folder's lock.
        drop(writer);
    } else {
        if let Some((what, was, is)) = writer.changed_step(&run) {
            bars.line(&format!("making `{}` anew: `{what}` was {was}, now it is {is}", args.output.display()));
        }
        writer.resume(&run, args.restart)?;
        quantize(args, checkpoint, &settings, &device, sources, writer, &mut bars).inspect_err(|_| bars.clear())?;
        println!("wrote `{}`", args.output.display());
    }

    if let Some(evaluated) = evaluated {
        // What is measured is the model in f32.
        let device = Device::open(&args.device, false, &mut bars)?;
        let measured = report::measure(args, &settings, checkpoint, &float, &device, &evaluated, &mut bars);
        measured.inspect_err(|_| bars.clear())?;
    }
    if let Some(folder) = &args.to_mlc {
        let quantized = SafetensorsCheckpoint::open(&args.output)?;
        let report = convert(&quantized, mlc_format, &mlc_options, folder, &mut bars)?;
        bars.clear();
        let rounded = match report.weights.rounded.len() {
            0 => String::new(),
            count => format!(", {count} rounded to nearest"),
        };
        println!(
            "wrote `{}`: {:.1} MB, {:.3} bits per weight, {} matrices without loss{rounded}",
            folder.display(),
            report.weights.param_bytes as f64 / 1e6,
            report.weights.bits_per_param,
            report.weights.lossless.len()
        );
    }
    Ok(())
}

/// Computes what is not there yet, and finishes the folder.
fn quantize(
    args: &Args,
    checkpoint: &dyn Checkpoint,
    settings: &Settings,
    device: &Device,
    sources: Sources<'_>,
    mut writer: CheckpointWriter<'_>,
    bars: &mut Bars,
) -> Result<()> {
    let texts = sources.complete(checkpoint, settings, device, &mut writer, bars)?;
    let windows = &texts.calibration;
    if texts.sources.len() > 1 {
        let parts = texts.sources.iter().map(|(name, windows)| format!("{windows} of `{name}`"));
        bars.line(&parts.collect::<Vec<_>>().join(", "));
    }
    bars.line(&format!("calibrating on {} windows of {} tokens, on {device}", windows.len(), windows.seq_len()));
    let done = writer.reports().count();
    if done > 0 {
        bars.line(&format!("going on: {done} matrices are done"));
    }
    let timings =
        with_ops!(device, ops => block_on(quantize_layers(ops, checkpoint, windows, settings, bars, &mut writer)))?;
    let report = report::report(args, settings, device, &texts, &writer, &timings);
    report.files().into_iter().for_each(|(name, content)| writer.attach(name, content));
    writer.finish()?;
    bars.clear();
    let total = timings.total().as_secs_f64();
    let share = |part: Duration| format!("{:.0} %", part.as_secs_f64() / total * 100.0);
    bars.line(&format!(
        "{total:.1} seconds: forward {}, Hessians {}, factors {}, codes and scales {}, report {}{}",
        share(timings.forward),
        share(timings.hessian),
        share(timings.factoring),
        share(timings.quantization),
        share(timings.report),
        peak_memory().map_or(String::new(), |peak| format!("; {:.2} GiB of memory at the most", gib(peak)))
    ));
    Ok(())
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / (1u64 << 30) as f64
}

/// The most memory that the process had at a time, in bytes, with the pages of files that it has read; where the system
/// tells.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

/// Refuses matrices that the format of the MLC folder could not hold, before they are computed.
fn check_conversion(config: &DecoderConfig, settings: &Settings, format: &QuantFormat) -> Result<()> {
    for (param, options) in quantized_params(config, settings)? {
        ensure!(
            options.converts_to(format),
            "with these options `{}` does not fit into `{}`: that takes symmetric codes of at most 4 bits, groups of a \
             multiple of 32, and with act-order static groups; `--grid q4f16_1` has all of it",
            param.name,
            format.name
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_interruption_itself_is_quiet() {
        let cancelled = anyhow::Error::from(gptq_quant::Error::Cancelled).context("in the middle");
        assert!(is_interruption(&cancelled));
        assert!(is_interruption(&weight_convert::Error::Cancelled.into()));
        assert!(is_interruption(&model_hub::Error::Cancelled.into()));
        let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
        let full = model_format::Error::Io { action: "write", path: "a".into(), source: full };
        assert!(!is_interruption(&gptq_quant::Error::Format(full).into()));
        assert!(!is_interruption(&anyhow::anyhow!("interrupted")));
    }
}
