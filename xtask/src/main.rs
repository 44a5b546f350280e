//! Repository automation: `cargo xtask test`, `demo`, `web`, `dawn`, `fetch`, `docs`, `figures`, `pictures`, `hardware` and
//! `tidy`.
//!
//! Runs the workspace's programs from outside, as a user does: it imports no crate of the workspace. Start reading at
//! `demo.rs` to see the programs work together, and at `tidy/mod.rs` for the rules that every file must follow.

mod book;
#[cfg(test)]
mod commands;
mod dawn;
mod demo;
mod fetch;
mod figures;
mod hardware;
mod linters;
mod markdown;
mod mesa;
mod pictures;
mod programs;
mod setup;
mod step;
mod test;
mod tidy;
mod web;
mod wheel;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Result, ensure};
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
    /// Run every check: formatting, tidy, clippy, documentation, all tests
    #[command(visible_alias = "ci")]
    Test,
    /// Fetch, quantize, convert and ask a small real model
    Demo(demo::Options),
    /// Build the page that runs models in a browser, and serve it
    Web(web::Options),
    /// Run every kernel in Dawn, Chrome's WebGPU
    Dawn,
    /// Fetch everything that the checks need, for work without a network
    Fetch,
    /// Build the book in docs/ as web pages, in target/book
    Docs,
    /// Draw the pictures in docs/figures from benches/results
    Figures,
    /// Record chat-cli and take screenshots of the page, for docs/figures
    Pictures(pictures::Options),
    /// Compile every kernel for absent GPUs, and predict a model's speed on them
    Hardware(hardware::Options),
    /// Check the rules of ARCHITECTURE.md, dependencies, spelling and the layout of TOML files, in seconds
    Tidy,
}

fn main() -> ExitCode {
    let root = root();
    let result = match Arguments::parse().command {
        Command::Test => test::run(&root),
        Command::Demo(options) => demo::run(&root, &options),
        Command::Web(options) => web::run(&root, &options),
        Command::Dawn => dawn::run(&root),
        Command::Fetch => fetch::run(&root),
        Command::Docs => book::run(&root),
        Command::Figures => figures::run(&root),
        Command::Pictures(options) => pictures::run(&root, &options),
        Command::Hardware(options) => hardware::run(&root, &options),
        Command::Tidy => check_text(&root),
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

/// The checks that compile nothing.
fn check_text(root: &Path) -> Result<()> {
    let mut failed = Vec::new();
    if let Err(error) = tidy::run(root) {
        failed.push(format!("{error:#}"));
    }
    linters::check(&mut step::Steps::new()?, &mut failed, root)?;
    ensure!(failed.is_empty(), "{}", failed.join("\n  "));
    Ok(())
}

/// The workspace this program was built from.
fn root() -> PathBuf {
    let mut root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    root.pop();
    root
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `cargo xtask` by its own flags; of cargo's commands, that the package and the targets they name exist.
    #[test]
    fn documented_cargo_commands_exist() {
        let commands = commands::documented(&root()).unwrap();
        let cargo: Vec<&commands::Command> = commands.iter().filter(|command| command.program == "cargo").collect();
        let mut checked = 0;
        for command in cargo {
            let arguments = &command.arguments;
            if arguments[0] == "xtask" {
                let parsed = Arguments::try_parse_from(arguments);
                assert!(parsed.is_ok(), "{}: {}", command.place, parsed.err().unwrap());
                checked += 1;
            }
            let own = arguments.split(|word| word == "--").next().unwrap();
            let value =
                |flags: &[&str]| own.windows(2).find(|pair| flags.contains(&pair[0].as_str())).map(|pair| &pair[1]);
            let Some(package) = value(&["-p", "--package"]) else { continue };
            let folder = root().join(package);
            assert!(folder.join("Cargo.toml").is_file(), "{}: no crate `{package}`", command.place);
            for (flag, targets) in [("--test", "tests"), ("--bench", "benches"), ("--example", "examples")] {
                let Some(target) = value(&[flag]) else { continue };
                let homes = [format!("{targets}/{target}.rs"), format!("{targets}/{target}/main.rs")];
                let exists = homes.iter().any(|home| folder.join(home).is_file());
                assert!(exists, "{}: `{package}` has no {flag} `{target}`", command.place);
            }
            checked += 1;
        }
        assert!(checked > 10, "only {checked} commands found");
    }
}
