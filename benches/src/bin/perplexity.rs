//! Perplexity of a model on a text: what quantizing cost, by the protocol that GPTQ's authors and most since have used.
//!
//! `perplexity MODEL [--text FILE --wikitext --windows N --seq-len N]`. MODEL is anything `model-hub` opens: a float or
//! GPTQ checkpoint, a GGUF file, an MLC folder, a hub name. Without a text, a short one that comes with the project.

use std::{io::IsTerminal, path::PathBuf, time::Instant};

use anyhow::{Context, Result};
use benches::loaded::{self, Target};
use calib_data::{Choice, TokenWindows, perplexity};
use clap::Parser;
use infer_core::{KvDtype, Tokenizer};

/// Perplexity of a model on a text.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Checkpoint folder, GGUF file, MLC folder or hub name.
    model: String,
    /// Text file to measure on [default: a short text that comes with the project].
    #[arg(long)]
    text: Option<PathBuf>,
    /// The text is a raw WikiText file: join its rows as GPTQ's authors do.
    #[arg(long, requires = "text")]
    wikitext: bool,
    /// Measure only the first N windows.
    #[arg(long)]
    windows: Option<usize>,
    /// Tokens per window; a shorter text is one window.
    #[arg(long, default_value_t = 2048)]
    seq_len: usize,
    /// cpu, auto, or the number or name of a GPU adapter.
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Print one JSON object instead of a line of text.
    #[arg(long)]
    json: bool,
}

fn main() {
    benches::exit_with(run(Args::parse()));
}

fn run(args: Args) -> Result<()> {
    let opened = loaded::open(&args.model)?;
    let tokenizer = Tokenizer::from_bytes(&opened.file("tokenizer.json")?)?;
    let text = match &args.text {
        Some(path) => std::fs::read_to_string(path).with_context(|| format!("cannot read `{}`", path.display()))?,
        None => perplexity::SHORT_TEXT.into(),
    };
    let text = if args.wikitext { perplexity::wikitext_text(&text) } else { text };
    let tokens = tokenizer.encode(&text)?;
    let seq_len = args.seq_len.min(tokens.len()).max(2);
    let samples = (tokens.len() / seq_len).min(args.windows.unwrap_or(usize::MAX)).max(1);
    let windows = TokenWindows::new(&[&text], |text| tokenizer.encode(text), seq_len, samples, Choice::First)?;

    let start = Instant::now();
    let show = std::io::stderr().is_terminal();
    let mut losses = Vec::with_capacity(windows.len());
    let mut measure = |loss: f64| {
        losses.push(loss);
        if show {
            let soon = perplexity::perplexity(&losses);
            eprint!("\r{} / {} windows, perplexity {soon:.4} ", losses.len(), windows.len());
        }
    };
    let mut loaded = Target::Model(opened).load_session(&args.device, KvDtype::F32, seq_len)?;
    for window in windows.iter() {
        measure(mean(&loaded.token_losses(window)?));
    }
    if show {
        eprintln!();
    }
    let seconds = start.elapsed().as_secs_f64();
    let value = perplexity::perplexity(&losses);
    if args.json {
        let report = serde_json::json!({
            "model": args.model, "device": args.device, "perplexity": value, "windows": losses.len(),
            "seq_len": seq_len, "seconds": seconds, "window_losses": losses,
        });
        println!("{report}");
    } else {
        println!("perplexity {value:.4} over {} windows of {seq_len} tokens ({seconds:.1} s)", losses.len());
    }
    Ok(())
}

fn mean(losses: &[f32]) -> f64 {
    losses.iter().map(|&loss| f64::from(loss)).sum::<f64>() / losses.len() as f64
}
