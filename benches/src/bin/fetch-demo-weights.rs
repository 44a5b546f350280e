//! Downloads the demo model's weights once and prints their path. `cargo xtask test` runs it before `tests/demo_model.rs`, so
//! that no test needs a network.

use std::process::ExitCode;

use model_hub::demo;

fn main() -> ExitCode {
    benches::exit_with(fetch())
}

fn fetch() -> anyhow::Result<()> {
    println!("{}", demo::fetch_gguf(&command_line::hub_config()?, &mut ())?.display());
    Ok(())
}
