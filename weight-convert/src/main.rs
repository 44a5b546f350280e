//! `weight-convert`: checkpoints into MLC folders, with the commands of mlc_llm and a shorter one.

mod cli;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let stop = cli::stop_on_ctrl_c();
    match cli::run(cli::Args::parse(), &stop) {
        Ok(code) => code,
        Err(error) if stop.is_set() && cli::is_interruption(&error) => {
            eprintln!("{error:#}");
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
