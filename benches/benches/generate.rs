//! Prefill and decode of a whole model, in tokens per second and as a share of the device's memory bandwidth.
//!
//! `cargo bench --bench generate -- --shape llama-3.2-3b --prefill 512 --decode 128`, or `--model` with anything
//! `model-hub` opens. Each figure is a mean over `--repeat` runs after one that is not counted.

use std::time::Instant;

use anyhow::Result;
use benches::{
    loaded::{self, Loaded, Target},
    shapes::{self, bytes_per_token},
};
use clap::Parser;
use infer_core::{KvDtype, block_on, model::Session, ops::Choose};
use model_format::{DecoderConfig, QuantFormat};

/// Prefill and decode of a whole model.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// A published shape with random weights: llama-3.2-3b, llama-3.2-1b, smollm2-135m.
    #[arg(long, default_value = "smollm2-135m", conflicts_with = "model")]
    shape: String,
    /// Quantization format of a shape.
    #[arg(long, default_value = "q4f16_1")]
    format: String,
    /// A model: checkpoint folder, GGUF file, MLC folder or hub name.
    #[arg(long)]
    model: Option<String>,
    /// Prompt lengths to prefill.
    #[arg(long, value_delimiter = ',', default_values_t = [512])]
    prefill: Vec<usize>,
    /// Tokens to decode.
    #[arg(long, default_value_t = 128)]
    decode: usize,
    /// Tokens already in the cache when decoding begins.
    #[arg(long, value_delimiter = ',', default_values_t = [0])]
    depth: Vec<usize>,
    /// Counted runs of each.
    #[arg(long, short, default_value_t = 5)]
    repeat: usize,
    /// Number type of the cache on a GPU.
    #[arg(long, value_enum, default_value_t = Kv::F16)]
    kv: Kv,
    /// cpu, auto, or the number or name of a GPU adapter.
    #[arg(long, default_value = "auto")]
    device: String,
    /// Print one JSON object per figure.
    #[arg(long)]
    json: bool,
    /// Passed by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Number type of the cache.
#[derive(Clone, Copy, clap::ValueEnum)]
enum Kv {
    F16,
    F32,
    Q8,
}

impl From<Kv> for KvDtype {
    fn from(kv: Kv) -> KvDtype {
        match kv {
            Kv::F16 => KvDtype::F16,
            Kv::F32 => KvDtype::F32,
            Kv::Q8 => KvDtype::Q8,
        }
    }
}

/// What is measured.
struct Measured {
    name: String,
    bytes_per_token: Option<usize>,
    device: String,
    /// Bytes per second that a copy reaches on this device, read and written together.
    copy_bandwidth: Option<f64>,
}

fn main() {
    benches::exit_with(run(Args::parse()));
}

fn run(args: Args) -> Result<()> {
    let context = args.depth.iter().max().unwrap_or(&0) + args.decode + 1;
    let context = context.max(args.prefill.iter().copied().max().unwrap_or(1));
    let (target, name, bytes) = match &args.model {
        Some(model) => (Target::Model(loaded::open(model)?), model.clone(), None),
        None => {
            let config = shapes::by_name(&args.shape)?;
            let format = QuantFormat::by_name(&args.format)?;
            let bytes = bytes_per_token(&config, format);
            (Target::Shape(config, format), format!("{} {}", args.shape, args.format), Some(bytes))
        }
    };
    let measured = |device: String, copy_bandwidth| Measured { name, bytes_per_token: bytes, device, copy_bandwidth };
    match target.load_session(&args.device, args.kv.into(), context)? {
        Loaded::Cpu(session, config) => measure(&args, &measured("CPU (candle)".into(), None), session, &config),
        Loaded::Gpu(session, config, gpu) => {
            let bandwidth = Some(block_on(gpu.copy_bandwidth())?);
            measure(&args, &measured(gpu.summary().name.clone(), bandwidth), session, &config)
        }
    }
}

fn measure<O: Choose>(args: &Args, measured: &Measured, mut session: Session<O>, config: &DecoderConfig) -> Result<()> {
    eprintln!("{} on {}", measured.name, measured.device);
    if let Some(bandwidth) = measured.copy_bandwidth {
        eprintln!("copy bandwidth {:.1} GB/s (read and written)", bandwidth / 1e9);
    }
    let vocab = config.vocab_size as u32;
    let prompt = |len: usize| -> Vec<u32> { (0..len as u32).map(|i| (i * 7919 + 13) % vocab).collect() };
    for &len in &args.prefill {
        let tokens = prompt(len);
        let rates = repeat(args.repeat, || {
            session.cache_mut().truncate(0);
            let start = Instant::now();
            block_on(session.most_likely(&tokens))?;
            Ok(len as f64 / start.elapsed().as_secs_f64())
        })?;
        report(args, measured, &format!("prefill {len}"), &rates, None);
    }
    if args.decode == 0 {
        return Ok(());
    }
    for &depth in &args.depth {
        session.cache_mut().truncate(0);
        let mut next = match depth {
            0 => 1,
            _ => block_on(session.most_likely(&prompt(depth)))?,
        };
        let rates = repeat(args.repeat, || {
            session.cache_mut().truncate(depth);
            let start = Instant::now();
            for _ in 0..args.decode {
                next = block_on(session.most_likely(&[next]))?;
            }
            Ok(args.decode as f64 / start.elapsed().as_secs_f64())
        })?;
        let name =
            if depth == 0 { format!("decode {}", args.decode) } else { format!("decode {} @ {depth}", args.decode) };
        report(args, measured, &name, &rates, measured.bytes_per_token);
    }
    Ok(())
}

/// The results of `count` runs after one that is not counted.
fn repeat(count: usize, mut run: impl FnMut() -> Result<f64>) -> Result<Vec<f64>> {
    run()?;
    (0..count).map(|_| run()).collect()
}

/// One line, or one JSON object, of a figure in tokens per second.
fn report(args: &Args, measured: &Measured, figure: &str, rates: &[f64], bytes_per_token: Option<usize>) {
    let mean = rates.iter().sum::<f64>() / rates.len() as f64;
    let spread = (rates.iter().map(|r| (r - mean).powi(2)).sum::<f64>() / rates.len() as f64).sqrt();
    let bandwidth = bytes_per_token.map(|bytes| bytes as f64 * mean);
    let share = bandwidth.zip(measured.copy_bandwidth).map(|(read, copy)| read / copy);
    if args.json {
        let report = serde_json::json!({
            "model": measured.name, "device": measured.device, "figure": figure, "tokens_per_second": mean,
            "standard_deviation": spread, "runs": rates, "weight_bytes_per_second": bandwidth,
            "copy_bytes_per_second": measured.copy_bandwidth, "share_of_copy_bandwidth": share,
        });
        println!("{report}");
        return;
    }
    print!("{figure:<20} {mean:>10.1} tok/s ± {spread:.1}");
    if let Some(bandwidth) = bandwidth {
        print!("   {:.1} GB/s of weights", bandwidth / 1e9);
    }
    if let Some(share) = share {
        print!(" = {:.1} % of copy bandwidth", share * 100.0);
    }
    println!();
}
