//! `chat-cli bench`: prefill and decode of a model, or of a shape with random weights.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use anyhow::bail;
use chat_cli::{
    NumberTypes, Setup, Weights, bench_report, parallel,
    throughput::{Plan, measure},
};
use command_line::Bars;
use infer_core::block_on;

use crate::{
    arguments::{BenchArguments, Output},
    load,
    loading::Loading,
};

/// Runs `chat-cli bench`.
pub fn bench(arguments: &BenchArguments) -> anyhow::Result<ExitCode> {
    let text = if arguments.parallel.is_empty() { one_text(arguments)? } else { many_streams(arguments)? };
    io::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

/// The model with its name, and where and how it runs.
fn subject(arguments: &BenchArguments, bars: &mut Bars) -> anyhow::Result<(String, Weights, Setup, NumberTypes)> {
    let setup = load::setup(&arguments.device.device, &arguments.device.kernels)?;
    let (name, weights) = load::weights(&arguments.subject, bars)?;
    Ok((name, weights, setup, load::number_types(arguments.device.cache, arguments.device.cpu_weights)))
}

/// The report of one text at a time.
fn one_text(arguments: &BenchArguments) -> anyhow::Result<String> {
    let plan = Plan {
        prompt: arguments.prompt.clone(),
        decode: arguments.decode.clone(),
        depth: arguments.depth.clone(),
        repetitions: arguments.repetitions,
        roofline: arguments.roofline,
    };
    let mut bars = Bars::quiet_if(arguments.quiet);
    let (name, weights, setup, types) = subject(arguments, &mut bars)?;
    let measured = block_on(measure(name, &weights, &setup, types, &plan, &mut Loading(&mut bars)));
    let (subject, tests) = measured?;
    let at = arguments.at;
    Ok(match arguments.output {
        Output::Md => bench_report::markdown(&subject, &tests, at),
        Output::Json => format!("{:#}\n", bench_report::json(&subject, &tests, at)),
        Output::Csv => bench_report::csv(&subject, &tests),
    })
}

/// The report of `--parallel`.
fn many_streams(arguments: &BenchArguments) -> anyhow::Result<String> {
    let (Some(&prompt), Some(&decode)) = (arguments.prompt.first(), arguments.decode.first()) else {
        bail!("`--parallel` needs a prompt length and a decoded length");
    };
    if prompt == 0 || decode < 2 || arguments.shared_prefix > prompt {
        bail!(
            "`--parallel` needs a prompt of 1 token or more (found: {prompt}), 2 decoded tokens or more (found: {decode}), and a shared \
             prefix within the prompt (found: {})",
            arguments.shared_prefix
        );
    }
    let is_json = match arguments.output {
        Output::Md => false,
        Output::Json => true,
        Output::Csv => bail!("`--parallel` has no CSV report; use `-o md` or `-o json`"),
    };
    let plan = parallel::Plan {
        streams: arguments.parallel.clone(),
        prompt,
        decode,
        shared_prefix: arguments.shared_prefix,
        late_prompt: arguments.late_prompt,
        repetitions: arguments.repetitions,
    };
    let mut bars = Bars::quiet_if(arguments.quiet);
    let (name, weights, setup, types) = subject(arguments, &mut bars)?;
    let (device, tests) = block_on(parallel::measure(&weights, &setup, types, &plan, &mut Loading(&mut bars)))?;
    Ok(match is_json {
        true => format!("{:#}\n", parallel::json(&name, &device, &tests)),
        false => parallel::markdown(&name, &device, &tests),
    })
}
