//! `gptq-quant`: a checkpoint in, a GPTQ checkpoint out, and with `--to-mlc` the MLC folder too.

mod cli;

use std::process::ExitCode;

use clap::Parser;

#[global_allocator]
static MEMORY: cli::LargePages = cli::LargePages;

fn main() -> ExitCode {
    model_format::caught::silence_caught();
    let stop = cli::stop_on_ctrl_c();
    match cli::run(&cli::Args::parse(), &stop) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if stop.is_set() && cli::is_interruption(&error) => {
            eprintln!("stopped; the same command goes on from here");
            ExitCode::from(130)
        }
        Err(error) => {
            eprintln!("error: {}", model_format::error::messages(error.as_ref()));
            if let Some(hint) = cli::hint(&error) {
                eprintln!("\nhint: {hint}");
            }
            ExitCode::FAILURE
        }
    }
}
