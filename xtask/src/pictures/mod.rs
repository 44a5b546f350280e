//! `cargo xtask pictures`: the pictures of running programs in `docs/figures/`, made anew.
//!
//! A terminal session of `chat-cli` is recorded (`record.rs`) and drawn (`figures/terminal.rs`). Screenshots of the page are
//! taken in a browser (`web-chat/tests/pictures.mjs`). Both show the demo model. `figures` has the charts.

mod record;

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result};

use crate::{
    figures,
    programs::{PROGRAMS, cargo, program},
    setup,
    step::Steps,
    web,
};

/// The recording, from which `cargo xtask figures` draws `chat.svg`.
const RECORDING: &str = "benches/results/chat.cast";
/// Folder of the converted demo model, named as in the recorded commands.
const WORK: &str = "target/pictures";
const MODEL: &str = "SmolLM2-135M-q4f16_1";

/// Options of the command.
#[derive(clap::Args)]
pub struct Options {
    /// Only record the terminal session
    #[arg(long, conflicts_with = "page")]
    terminal: bool,
    /// Only take the screenshots of the page
    #[arg(long)]
    page: bool,
}

/// Records the terminal and photographs the page.
pub fn run(root: &Path, options: &Options) -> Result<()> {
    let mut steps = Steps::new()?;
    steps.run("compile the programs", &mut cargo(root, PROGRAMS))?;
    let work = root.join(WORK);
    fs::create_dir_all(&work).with_context(|| format!("cannot create `{}`", work.display()))?;
    let mut convert = program(root, "weight-convert");
    convert.args(["convert", "demo", "--quantization", "q4f16_1", "-o", MODEL]).current_dir(&work);
    steps.run("convert the demo model", &mut convert)?;
    if !options.page {
        eprintln!("\n== record a terminal session");
        let recording = record::record(root, &work, MODEL)?;
        fs::write(root.join(RECORDING), recording).with_context(|| format!("cannot write `{RECORDING}`"))?;
        figures::run(root)?;
    }
    if !options.terminal {
        web::page(&mut steps, root)?;
        let browser = setup::browser(&mut steps, &root.join("web-chat"))?;
        let mut take = Command::new("node");
        take.args(["web-chat/tests/pictures.mjs", &format!("{WORK}/{MODEL}")]).current_dir(root);
        if let Some(browser) = browser {
            take.env("CHROMIUM", browser);
        }
        steps.run("take screenshots of the page", &mut take)?;
    }
    Ok(())
}
