//! Makes of a compiled wasm what a browser loads: the module, its JavaScript and its types.
//!
//! What `wasm-bindgen-cli` does, at the very version of `wasm-bindgen` that the workspace builds with: a program that
//! someone has installed is mostly of another one. `cargo xtask web` runs it.

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use wasm_bindgen_cli_support::Bindgen;

/// Makes of a compiled wasm what a browser loads.
#[derive(Parser)]
struct Arguments {
    /// The wasm that cargo compiled
    wasm: PathBuf,
    /// The folder of what is made
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
    // The module's address is the bundler's business.
    bindgen.input_path(wasm).web(true)?.typescript(true).omit_default_module_path(false).remove_producers_section(true);
    bindgen.generate(out)
}
