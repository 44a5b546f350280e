//! `chat-cli tune`: which forms of its kernels are fastest on a GPU.

use std::{
    io::{self, Write},
    process::ExitCode,
    time::{Duration, Instant},
};

use chat_cli::report;
use infer_core::Tuning;

use crate::{
    arguments::{Products, TuneArguments},
    load::{self, Kinds, Place, Weights},
    progress::Bars,
};

/// Tokens there is room for: enough for each kind of work.
const CONTEXT: usize = 1024;

/// Runs `chat-cli tune`.
pub fn tune(arguments: &TuneArguments) -> anyhow::Result<ExitCode> {
    let mut bars = Bars::new(arguments.quiet);
    let tuning = match arguments.kernels.no_tune {
        true => Tuning::Presets,
        false if arguments.again => Tuning::Again,
        false => Tuning::FirstUse,
    };
    let budget = Duration::from_secs_f64(arguments.seconds);
    let place = Place::of(&arguments.device, &arguments.kernels)?.tuned(tuning, budget);
    let (_, weights) = Weights::of(&arguments.subject, &mut bars)?;
    let start = Instant::now();
    let (model, device) = load::load_model(&weights, &place, Kinds::new(None, Products::Integer), CONTEXT, &mut bars)?;
    bars.say(&format!("{device}, loaded and tuned in {:.1} s", start.elapsed().as_secs_f64()));
    let text = match arguments.json {
        true => format!("{:#}\n", report::tuned_json(model.tuned())),
        false => report::tuned_table(model.tuned(), arguments.all),
    };
    io::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}
