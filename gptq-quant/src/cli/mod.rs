//! The command: from flags to the library, and from its reports to the terminal.

mod args;
mod bars;
mod device;

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::{Context, Result};
use calib_data::{ChatMessage, Choice, TokenWindows, read_documents};
use clap::{CommandFactory, error::ErrorKind};
use gptq_quant::{
    CheckpointWriter, SelfText, check_weights, checkpoint::unquantized_config, quantize_layers, write_windows,
};
use infer_core::{
    ChatTemplate, Message, Tokenizer, block_on,
    chat_template::{Role, Segment},
};
use model_format::{Checkpoint, DecoderConfig, QuantFormat, SafetensorsCheckpoint};
use model_hub::HubConfig;
use weight_convert::{ConfigOptions, ConfigSource, ConvertOptions, convert, gen_config};

pub use args::Args;
use bars::Bars;
use device::{Device, with_ops};

/// The format of `--to-mlc`.
const MLC_FORMAT: &str = "q4f16_1";

/// Windows of a file, where the user does not say.
const FILE_SAMPLES: usize = 128;

/// Windows that the model writes itself, and their tokens, where the user does not say.
const SELF_SAMPLES: usize = 64;
const SELF_SEQ_LEN: usize = 512;

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
    bars.expect(config.num_hidden_layers, args.damp_percent);

    // Everything that can be wrong with the output or the text comes out before the long work.
    let mut writer = CheckpointWriter::create(checkpoint, &args.output, &settings)?;
    let mlc_format = QuantFormat::by_name(MLC_FORMAT)?;
    let mlc_config = ConfigOptions { conv_template: args.conv_template.clone(), ..ConfigOptions::default() };
    let mlc_options = ConvertOptions { config: mlc_config, ..ConvertOptions::default() };
    if args.to_mlc.is_some() {
        let trial = tempfile::tempdir().context("cannot create a temporary folder")?;
        gen_config(&ConfigSource::of(checkpoint)?, mlc_format, &mlc_options.config, trial.path())?;
    }
    let device = Device::open(&args.device)?;
    check_weights(checkpoint)?;
    let windows = calibration(args, checkpoint, &config, &device, &mut bars)?;
    bars.line(&format!("calibrating on {} windows of {} tokens, on {device}", windows.len(), windows.seq_len()));

    let mut add = |param: &_, quantized: &_| writer.add(param, quantized);
    with_ops!(&device, ops => block_on(quantize_layers(ops, checkpoint, &windows, &settings, &mut bars, &mut add)))?;
    writer.finish()?;
    bars.clear();
    println!("wrote `{}`", args.output.display());

    if let Some(folder) = &args.to_mlc {
        let quantized = SafetensorsCheckpoint::open(&args.output)?;
        let report = convert(&quantized, mlc_format, &mlc_options, folder, &mut bars)?;
        bars.clear();
        println!(
            "wrote `{}`: {:.1} MB, {:.3} bits per weight, {} matrices without loss",
            folder.display(),
            report.weights.param_bytes as f64 / 1e6,
            report.weights.bits_per_param,
            report.weights.lossless.len()
        );
    }
    Ok(())
}

/// The windows to calibrate on.
fn calibration(
    args: &Args,
    checkpoint: &dyn Checkpoint,
    config: &DecoderConfig,
    device: &Device,
    bars: &mut Bars,
) -> Result<TokenWindows> {
    let context = config.max_position_embeddings;
    if args.calib == "self" {
        let text = SelfText {
            samples: args.samples.map_or(SELF_SAMPLES, |samples| samples as usize),
            seq_len: args.seq_len.map_or(SELF_SEQ_LEN.min(context), |len| len as usize),
            seed: args.seed,
        };
        let windows = with_ops!(device, ops => block_on(write_windows(ops, checkpoint, text, bars)))?;
        bars.clear();
        return Ok(windows);
    }
    let files = checkpoint.companion_files()?;
    let tokenizer = files.iter().find(|(name, _)| name == "tokenizer.json");
    let (_, tokenizer) = tokenizer.with_context(|| format!("`{}` has no tokenizer.json", checkpoint.location()))?;
    let tokenizer = Tokenizer::from_bytes(tokenizer)?;
    let template = ChatTemplate::from_files(&files)?;
    let documents = read_documents(Path::new(&args.calib), |messages| {
        let template = template.as_ref().context("the model has no chat template to write `messages` with")?;
        let messages: Vec<_> = messages.iter().map(message).collect::<Result<_>>()?;
        let segments = template.render(&tokenizer, &messages, false)?;
        anyhow::Ok(segments.iter().map(Segment::text).collect())
    })?;
    let seq_len = args.seq_len.map_or(2048.min(context), |len| len as usize);
    let encode = |text: &str| tokenizer.encode(text);
    let windows = |samples| TokenWindows::new(&documents, encode, seq_len, samples, Choice::Seeded(args.seed));
    let samples = args.samples.map_or(FILE_SAMPLES, |samples| samples as usize);
    Ok(match windows(samples) {
        // A number that nobody asked for is taken as the most.
        Err(calib_data::Error::TooShort { tokens, .. }) if args.samples.is_none() && tokens >= seq_len => {
            windows(tokens / seq_len)?
        }
        result => result?,
    })
}

/// A message of a calibration file as the chat template takes it.
fn message(message: &ChatMessage) -> Result<Message> {
    let roles = [Role::System, Role::User, Role::Assistant, Role::Tool];
    let role = roles.into_iter().find(|role| role.as_str() == message.role);
    let role = role.with_context(|| format!("`{}` is not the role of a message", message.role))?;
    Ok(Message::new(role, &message.content))
}
