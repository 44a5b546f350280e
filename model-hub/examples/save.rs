//! Saves any model source as a Hugging Face folder: `cargo run --release -p model-hub --example save -- demo OUT`.

use model_hub::{HubConfig, Progress, open, save_checkpoint};

struct Lines;

impl Progress for Lines {
    fn message(&mut self, text: &str) {
        eprintln!("{text}");
    }
    fn start(&mut self, file: &str, done: u64, total: Option<u64>) {
        eprintln!("{file}: {} bytes, {done} already present", total.map_or("?".into(), |total| total.to_string()));
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [source, folder] = &args[..] else { return Err("usage: save SOURCE FOLDER".into()) };
    let hub = HubConfig::from_vars(|name| std::env::var(name).ok())?;
    let checkpoint = open(source, &hub, &mut Lines)?.into_checkpoint()?;
    save_checkpoint(&*checkpoint, folder.as_ref())?;
    Ok(())
}
