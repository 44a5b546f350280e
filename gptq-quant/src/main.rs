//! `gptq-quant`: quantizes a checkpoint with GPTQ; with `--to-mlc`, also converts the result to an MLC folder.

mod cli;

use std::process::ExitCode;

use clap::Parser;
use command_line::{INTERRUPTED, LargePages, Stop, finish, is_interruption};

#[global_allocator]
static MEMORY: LargePages = LargePages;

fn main() -> ExitCode {
    model_format::caught::silence_caught();
    let stop = Stop::on_ctrl_c();
    match cli::run(&cli::Args::parse(), &stop) {
        Err(error) if stop.is_set() && is_interruption(&error, cli::is_cancelled) => {
            eprintln!("stopped; the same command goes on from here");
            ExitCode::from(INTERRUPTED)
        }
        done => finish(done.map(|()| ExitCode::SUCCESS), cli::HINTS),
    }
}
