//! `chat-cli`: talk to a model in the terminal. Flags are in `arguments.rs`; what happens is here.

mod arguments;
mod bench;
mod engine;
mod load;
mod measure;
mod progress;
mod terminal;
mod threads;
mod tune;

use std::io::{self, IsTerminal, Read, Write};
use std::process::ExitCode;

use anyhow::Context;
use chat_cli::{Answer, Assistant, Repl, report, shapes};
use infer_core::{FinishReason, Message, block_on};

use arguments::{Arguments, ChatArguments, Command, DevicesArguments, KernelArguments, SelftestArguments};
use engine::EngineAssistant;

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
    match done {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::from(141),
        Err(error) => {
            eprintln!("error: {}", model_format::error::messages(error.as_ref()));
            if let Some(hint) = hint(&error) {
                eprintln!("\nhint: {hint}");
            }
            ExitCode::FAILURE
        }
    }
}

fn chat(arguments: &ChatArguments) -> anyhow::Result<ExitCode> {
    // Before the model is loaded, which takes a while.
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
    Ok(if answer.finish_reason.is_some() { ExitCode::SUCCESS } else { ExitCode::from(130) })
}

/// The text of `-p`; `-` stands for what comes on stdin.
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
        writeln!(io::stdout(), "{:#}", chat_cli::device::devices_json(&devices))?;
    } else {
        write!(io::stdout(), "{}", chat_cli::device::devices_table(&devices))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn selftest(arguments: &SelftestArguments) -> anyhow::Result<ExitCode> {
    let mut bars = progress::Bars::new(arguments.quiet);
    let (gpu, name) =
        load::Place::of(&arguments.device, &KernelArguments { no_cooperative_matrix: false, no_tune: true })?
            .open_gpu()?;
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
        let report = report::selftest_json(&lines, &name, driver, start.elapsed().as_secs_f64());
        writeln!(io::stdout(), "{report:#}")?;
    } else {
        bars.say(&format!("{name}, {driver}, {:.1} s", start.elapsed().as_secs_f64()));
        write!(io::stdout(), "{}", report::selftest_table(&lines))?;
    }
    Ok(if lines.iter().all(|line| line.outcome.is_ok()) { ExitCode::SUCCESS } else { ExitCode::from(3) })
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<chat_cli::Error>().is_some_and(chat_cli::Error::is_broken_pipe)
            || cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    })
}

/// What the libraries say can be done about it.
fn hint(error: &anyhow::Error) -> Option<String> {
    error.chain().find_map(|cause| {
        let of_chat = || cause.downcast_ref::<chat_cli::Error>()?.hint();
        let of_engine = || cause.downcast_ref::<infer_core::Error>()?.hint();
        let of_windows = || cause.downcast_ref::<calib_data::Error>()?.hint();
        let of_hub = || cause.downcast_ref::<model_hub::Error>()?.hint();
        let of_format = || cause.downcast_ref::<model_format::Error>()?.hint();
        let of_file = || cause.downcast_ref::<measure::BadFile>().map(measure::BadFile::hint);
        let of_device = || cause.downcast_ref::<load::NoKernels>().map(load::NoKernels::hint);
        of_chat()
            .or_else(of_engine)
            .or_else(of_windows)
            .or_else(of_hub)
            .or_else(of_format)
            .or_else(of_file)
            .or_else(of_device)
    })
}
