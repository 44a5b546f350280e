//! `chat-cli bench`: prefill and decode of a model, or of a shape with random weights.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use chat_cli::{
    bench_report,
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
    let plan = Plan {
        prompt: arguments.prompt.clone(),
        decode: arguments.decode.clone(),
        depth: arguments.depth.clone(),
        repetitions: arguments.repetitions,
        roofline: arguments.roofline,
    };
    let mut bars = Bars::quiet_if(arguments.quiet);
    let setup = load::setup(&arguments.device.device, &arguments.device.kernels)?;
    let (name, weights) = load::weights(&arguments.subject, &mut bars)?;
    let types = load::number_types(arguments.device.cache, arguments.device.cpu_weights);
    let measured = block_on(measure(name, &weights, &setup, types, &plan, &mut Loading(&mut bars)));
    let (subject, tests) = measured?;
    let at = arguments.at;
    let text = match arguments.output {
        Output::Md => bench_report::markdown(&subject, &tests, at),
        Output::Json => format!("{:#}\n", bench_report::json(&subject, &tests, at)),
        Output::Csv => bench_report::csv(&subject, &tests),
    };
    io::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}
