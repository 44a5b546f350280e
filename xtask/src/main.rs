//! Repository automation: `cargo xtask test`, `cargo xtask demo`, `cargo xtask web`, `cargo xtask tidy`.
//!
//! Runs the workspace's programs as anyone would, from outside: it imports no crate of ours. Start reading at
//! `demo.rs` for what the programs do together, and at `tidy.rs` for what every file is held to.

mod dawn;
mod demo;
mod hardware;
mod mesa;
mod programs;
mod setup;
mod step;
mod test;
mod tidy;
mod web;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

/// Automation of this repository.
#[derive(Parser)]
#[command(bin_name = "cargo xtask", arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Everything a change must pass: formatting, tidy, clippy, all tests, documentation
    #[command(visible_alias = "ci")]
    Test,
    /// The whole job on a small real model: fetch, quantize, convert, ask
    Demo(demo::Options),
    /// The page that runs models in a browser: builds it and serves it for trying
    Web(web::Options),
    /// Every kernel in Dawn, Chrome's WebGPU
    Dawn,
    /// The kernels through compilers of GPUs that are not here, and a prediction of how fast a model is on them
    Hardware(hardware::Options),
    /// The arrows between crates and the invariants of ARCHITECTURE.md
    Tidy,
}

fn main() -> ExitCode {
    let root = root();
    let result = match Arguments::parse().command {
        Command::Test => test::run(&root),
        Command::Demo(options) => demo::run(&root, &options),
        Command::Web(options) => web::run(&root, &options),
        Command::Dawn => dawn::run(&root),
        Command::Hardware(options) => hardware::run(&root, &options),
        Command::Tidy => tidy::run(&root),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<step::Interrupted>() => {
            eprintln!("\n{error}");
            ExitCode::from(130)
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The workspace this program was built from.
fn root() -> PathBuf {
    let mut root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    root.pop();
    root
}
