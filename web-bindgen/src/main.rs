//! Prepares a compiled wasm file for browsers: writes the module, its JavaScript and its types.
//!
//! It does the work of `wasm-bindgen-cli`, which must have exactly the workspace's version of `wasm-bindgen`; an installed
//! one rarely does. `cargo xtask web` runs this program.

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use wasm_bindgen_cli_support::Bindgen;

/// Prepare a compiled wasm file for browsers.
#[derive(Parser)]
struct Arguments {
    /// The wasm file that cargo compiled
    wasm: PathBuf,
    /// Output folder
    out: PathBuf,
}

fn main() -> ExitCode {
    let Arguments { wasm, out } = Arguments::parse();
    match generate(&wasm, &out) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn generate(wasm: &PathBuf, out: &PathBuf) -> anyhow::Result<()> {
    let mut bindgen = Bindgen::new();
    // The JavaScript names the wasm by `new URL(..., import.meta.url)`, which bundlers recognize.
    bindgen.input_path(wasm).web(true)?.typescript(true).omit_default_module_path(false).remove_producers_section(true);
    bindgen.generate(out)
}
