//! `weight-convert`: converts checkpoints to MLC folders, in one command or with the commands of mlc_llm.

mod cli;

use std::process::ExitCode;

use clap::Parser;
use command_line::{INTERRUPTED, Stop, finish, is_interruption};

fn main() -> ExitCode {
    let stop = Stop::on_ctrl_c();
    match cli::run(cli::Args::parse(), &stop) {
        Err(error) if stop.is_set() && is_interruption(&error, cli::is_cancelled) => {
            eprintln!("{error:#}");
            ExitCode::from(INTERRUPTED)
        }
        done => finish(done, cli::HINTS),
    }
}
