//! `chat-cli tune`: autotunes the kernels of a model and shows the result.

use std::{
    io::{self, Write},
    process::ExitCode,
    time::{Duration, Instant},
};

use chat_cli::report;
use command_line::Bars;
use infer_core::Tuning;

use crate::{
    arguments::{Products, TuneArguments},
    load,
};

/// Room for tokens: enough that every kind of kernel is tuned.
const CONTEXT: usize = 1024;

/// Runs `chat-cli tune`.
pub fn tune(arguments: &TuneArguments) -> anyhow::Result<ExitCode> {
    let mut bars = Bars::quiet_if(arguments.quiet);
    let tuning = match arguments.kernels.no_tune {
        true => Tuning::Presets,
        false if arguments.again => Tuning::Again,
        false => Tuning::FirstUse,
    };
    let setup = load::tuned_setup(&arguments.device, &arguments.kernels, tuning)?
        .with_tuning_budget(Duration::from_secs_f64(arguments.seconds));
    let (_, weights) = load::weights(&arguments.subject, &mut bars)?;
    let types = load::number_types(None, Products::Integer);
    let start = Instant::now();
    let (model, device) = load::load_model(&weights, &setup, types, CONTEXT, &mut bars)?;
    bars.say(&format!("{device}, loaded and tuned in {:.1} s", start.elapsed().as_secs_f64()));
    let text = match arguments.json {
        true => format!("{:#}\n", report::tuned_json(model.tuned())),
        false => report::tuned_table(model.tuned(), arguments.all),
    };
    io::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}
