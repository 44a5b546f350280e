//! Fetches the weights that `tests/demo_model.rs` runs, and prints where they lie. `cargo xtask test` calls it first, so
//! that no test needs a network.

use model_hub::{HubConfig, demo};

fn main() {
    benches::exit_with(fetch());
}

fn fetch() -> anyhow::Result<()> {
    let hub = HubConfig::from_vars(|name| std::env::var(name).ok())?;
    println!("{}", demo::fetch_gguf(&hub, &mut ())?.display());
    Ok(())
}
