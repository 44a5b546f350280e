//! `chat-cli`: runs a language model in the terminal. `arguments/` has the flags; each command has its function.

mod arguments;
mod bench;
mod engine;
mod load;
mod loading;
mod measure;
mod terminal;
mod tune;

use std::io::{self, IsTerminal, Read, Write};
use std::process::ExitCode;

use anyhow::Context;
use chat_cli::{Answer, Assistant, Repl, report, shapes};
use command_line::{Bars, HintOf, INTERRUPTED, finish, print_json, threads};
use infer_core::{FinishReason, Message, block_on};

use arguments::{Arguments, ChatArguments, Command, DevicesArguments, KernelArguments, SelftestArguments};
use engine::EngineAssistant;

/// Hints of errors that `command_line` does not know.
const HINTS: &[HintOf] = &[
    |cause| cause.downcast_ref::<chat_cli::Error>()?.hint(),
    |cause| cause.downcast_ref::<infer_core::Error>()?.hint(),
    |cause| cause.downcast_ref::<calib_data::Error>()?.hint(),
    |cause| cause.downcast_ref::<measure::BadFile>().map(measure::BadFile::hint),
];

fn main() -> ExitCode {
    model_format::caught::silence_caught();
    let done = match Arguments::parse().command {
        Command::Chat(arguments) => chat(&arguments),
        Command::Perplexity(arguments) => measure::perplexity(&arguments),
        Command::Logits(arguments) => measure::logits(&arguments),
        Command::Bench(arguments) => bench::bench(&arguments),
        Command::Devices(arguments) => devices(&arguments),
        Command::Selftest(arguments) => selftest(&arguments),
        Command::Tune(arguments) => tune::tune(&arguments),
    };
    threads::finish();
    finish(done, HINTS)
}

fn chat(arguments: &ChatArguments) -> anyhow::Result<ExitCode> {
    // Read stdin before the model is loaded, which takes a while.
    let prompt = arguments.prompt.as_deref().map(prompt).transpose()?;
    let interrupt = terminal::Interrupt::install()?;
    let mut assistant = load::load(arguments, &interrupt)?;
    let settings = arguments.sampling.over(assistant.chat_defaults())?;
    let Some(prompt) = prompt else {
        let (to_terminal, quiet) = (io::stdout().is_terminal(), arguments.quiet || !io::stdin().is_terminal());
        if !quiet {
            eprintln!("{} on {}; /help lists the commands", arguments.model, assistant.device());
        }
        let mut lines = terminal::Editor::new(!arguments.no_history)?;
        let (mut out, mut err) = (io::stdout(), io::stderr());
        Repl::new(&mut assistant, settings, arguments.system.clone(), to_terminal, &mut out, &mut err)
            .run(&mut lines)?;
        return Ok(ExitCode::SUCCESS);
    };

    let system = arguments.system.clone().map(Message::system);
    let messages: Vec<Message> = system.into_iter().chain([Message::user(prompt)]).collect();
    let answer = if arguments.json {
        let answer = assistant.answer(&messages, settings.params(), &mut |_| Ok(()))?;
        writeln!(io::stdout(), "{}", report::answer_json(&answer, &arguments.model, assistant.device()))?;
        answer
    } else {
        print_answer(&mut assistant, &messages, settings.params())?
    };
    if !arguments.quiet && !arguments.json {
        if answer.finish_reason == Some(FinishReason::Length) {
            eprintln!("{}", report::ENDED_BY_LENGTH);
        }
        eprintln!("{}", report::stats_line(&answer.stats));
    }
    Ok(if answer.finish_reason.is_some() { ExitCode::SUCCESS } else { ExitCode::from(INTERRUPTED) })
}

/// The text of `-p`; `-` reads it from stdin.
fn prompt(argument: &str) -> anyhow::Result<String> {
    if argument != "-" {
        return Ok(argument.to_string());
    }
    let mut text = String::new();
    io::stdin().read_to_string(&mut text).context("cannot read the prompt from stdin")?;
    Ok(text.trim_end_matches(['\n', '\r']).to_string())
}

fn print_answer(
    assistant: &mut EngineAssistant,
    messages: &[Message],
    params: &infer_core::SamplingParams,
) -> anyhow::Result<Answer> {
    let mut out = io::stdout();
    let to_terminal = out.is_terminal();
    let mut printable = chat_cli::Printable::default();
    let answer = assistant.answer(messages, params, &mut |text| {
        let clean = if to_terminal { printable.clean(text) } else { text.to_string() };
        out.write_all(clean.as_bytes())?;
        out.flush()
    })?;
    writeln!(out)?;
    Ok(answer)
}

fn devices(arguments: &DevicesArguments) -> anyhow::Result<ExitCode> {
    let devices = load::devices();
    if arguments.json {
        print_json(&chat_cli::device::devices_json(&devices))?;
    } else {
        write!(io::stdout(), "{}", chat_cli::device::devices_table(&devices))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn selftest(arguments: &SelftestArguments) -> anyhow::Result<ExitCode> {
    let mut bars = Bars::quiet_if(arguments.quiet);
    let kernels = KernelArguments { no_cooperative_matrix: false, no_tune: true };
    let (gpu, name) = block_on(load::setup(&arguments.device, &kernels)?.open_gpu())?;
    let start = std::time::Instant::now();
    let of_shapes = match arguments.full {
        true => shapes::chosen(&arguments.shape)?,
        false => Vec::new(),
    };
    let mut lines =
        block_on(infer_core::check_kernels(&gpu, |done, all| bars.count("kernels", done as u64, all as u64)))?;
    for (name, config) in &of_shapes {
        bars.clear();
        let checked = infer_core::check_full(&gpu, config, |done, all| bars.count(name, done as u64, all as u64));
        lines.extend(block_on(checked)?);
    }
    bars.clear();
    let driver = &gpu.summary().driver;
    if arguments.json {
        print_json(&report::selftest_json(&lines, &name, driver, start.elapsed().as_secs_f64()))?;
    } else {
        bars.say(&format!("{name}, {driver}, {:.1} s", start.elapsed().as_secs_f64()));
        write!(io::stdout(), "{}", report::selftest_table(&lines))?;
    }
    Ok(if lines.iter().all(|line| line.outcome.is_ok()) { ExitCode::SUCCESS } else { ExitCode::from(3) })
}
