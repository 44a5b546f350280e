//! Agreement with transformers by architecture, device and format, from the tiny checkpoints in `testdata/arch/` and their recorded
//! logits and greedy texts.
//!
//! `cargo bench -p benches --bench agreement [-- --device NAME]`. Each cell has the largest normalized mean squared error of the
//! logits, and the number of greedy tokens that are the most likely ones after the recorded tokens before them.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result};
use clap::Parser;
use infer_core::{Device, DeviceChoice, KvDtype, LoadOptions, LoadedModel, OpenOptions, block_on};
use model_format::{DirFiles, QuantFormat, SafetensorsCheckpoint};
use safetensors::SafeTensors;
use serde_json::Value;
use weight_convert::{WeightOptions, convert_weight};

/// Compare the engine with transformers.
#[derive(Parser)]
struct Args {
    #[arg(long, default_value = "gpu", value_name = "DEVICE", help = DeviceChoice::HELP)]
    device: DeviceChoice,
    /// Passed by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

const ARCHITECTURES: [&str; 8] = ["llama", "mistral", "qwen2", "qwen3", "phi3", "phi3-longrope", "gemma2", "gemma3"];
/// A format with the files of its recorded logits and greedy texts.
const FORMATS: [(&str, &str, &str); 3] = [
    ("q0f32", "logits.safetensors", "info.json"),
    ("q0f16", "logits.safetensors", "info.json"),
    ("q4f16_1", "logits_q4f16_1.safetensors", "greedy_q4f16_1.json"),
];

fn main() -> ExitCode {
    benches::exit_with(run(&Args::parse()))
}

fn run(args: &Args) -> Result<()> {
    let opened = block_on(args.device.open(OpenOptions::default()))?;
    let gpu = opened.gpu.context("this bench compares the CPU with a GPU; select one by --device")?;
    println!("GPU: {}, {}\n", gpu.summary().name, gpu.summary().driver);
    println!("| architecture | format | CPU f32 | GPU, cache f32 | GPU, cache f16 | GPU, cache q8 |");
    println!("|---|---|---|---|---|---|");
    for arch in ARCHITECTURES {
        for (format, logits, greedy) in FORMATS {
            let golden = Golden::read(arch, logits, greedy)?;
            let folder = golden.converted(QuantFormat::by_name(format)?)?;
            let device = |kv| Device::Gpu(gpu.clone(), kv);
            let cells =
                [Device::Cpu(Default::default()), device(KvDtype::F32), device(KvDtype::F16), device(KvDtype::Q8)]
                    .into_iter()
                    .map(|device| golden.measure(folder.path(), device))
                    .collect::<Result<Vec<_>>>()?;
            println!("| {arch} | {format} | {} |", cells.join(" | "));
        }
    }
    Ok(())
}

struct Golden {
    folder: PathBuf,
    /// Prompts with the recorded logits after their last tokens.
    prompts: Vec<(Vec<u32>, Vec<f32>)>,
    /// Prompts with the greedy text after them.
    texts: Vec<(Vec<u32>, Vec<u32>)>,
}

impl Golden {
    fn read(arch: &str, logits: &str, greedy: &str) -> Result<Golden> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/arch").join(arch);
        let bytes = |name: &str| std::fs::read(folder.join(name)).with_context(|| format!("cannot read `{name}`"));
        let (ids, logits) = (bytes("logits.safetensors")?, bytes(logits)?);
        let (ids, logits) = (SafeTensors::deserialize(&ids)?, SafeTensors::deserialize(&logits)?);
        let words = |file: &SafeTensors<'_>, name: &str| -> Result<Vec<u32>> {
            let data = file.tensor(name)?.data().to_vec();
            Ok(data.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
        };
        let mut prompts = Vec::new();
        for prompt in 0..2 {
            let whole = format!("logits_{prompt}");
            let name = if logits.tensor(&whole).is_ok() { whole } else { format!("logits_{prompt}_last") };
            let values = words(&logits, &name)?.into_iter().map(f32::from_bits).collect();
            prompts.push((words(&ids, &format!("ids_{prompt}"))?, values));
        }
        let greedy: Value = serde_json::from_slice(&bytes(greedy)?)?;
        let list = |value: &Value| -> Vec<u32> {
            value.as_array().into_iter().flatten().filter_map(|id| Some(id.as_u64()? as u32)).collect()
        };
        let texts = greedy["greedy"].as_array().context("`greedy` is missing")?;
        let text = |text: &Value| Ok((words(&ids, text["prompt"].as_str().context("`prompt`")?)?, list(&text["ids"])));
        let texts = texts.iter().map(text).collect::<Result<_>>()?;
        Ok(Golden { folder, prompts, texts })
    }

    /// Converts the checkpoint to an MLC folder.
    fn converted(&self, format: &'static QuantFormat) -> Result<tempfile::TempDir> {
        let folder = tempfile::tempdir()?;
        let checkpoint = SafetensorsCheckpoint::open(&self.folder.join("hf"))?;
        convert_weight(&checkpoint, format, &WeightOptions::default(), folder.path(), &mut ())?;
        let config = std::fs::read(self.folder.join("q4f16_1/mlc-chat-config.json"))?;
        let mut config: Value = serde_json::from_slice(&config)?;
        config["quantization"] = format.name.into();
        std::fs::write(folder.path().join("mlc-chat-config.json"), config.to_string())?;
        Ok(folder)
    }

    /// The cell of a device in the table.
    fn measure(&self, folder: &Path, device: Device) -> Result<String> {
        let options = LoadOptions { context: Some(256), ..Default::default() };
        let mut model = block_on(LoadedModel::load_mlc(&DirFiles::new(folder), device, &options, &mut ()))?;
        let vocab = model.config().vocab_size;
        let mut run = |text: &[u32]| -> Result<Vec<f32>> {
            let mut all = Vec::new();
            let take = |logits: &[f32]| -> infer_core::Result<()> {
                all.extend(logits);
                Ok(())
            };
            block_on(model.text_logits(text, take))?;
            Ok(all)
        };
        let mut worst: f64 = 0.0;
        for (ids, expected) in &self.prompts {
            let found = run(ids)?;
            worst = worst.max(nmse(&found[found.len() - expected.len()..], expected));
        }
        let (mut equal, mut count) = (0, 0);
        for (prompt, ids) in &self.texts {
            let whole: Vec<u32> = prompt.iter().chain(&ids[..ids.len() - 1]).copied().collect();
            let found = run(&whole)?;
            for (logits, &expected) in found.chunks_exact(vocab).skip(prompt.len() - 1).zip(ids) {
                let largest = (0..vocab).max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
                equal += usize::from(largest == Some(expected as usize));
                count += 1;
            }
        }
        Ok(format!("{worst:.0e}, {equal}/{count}"))
    }
}

fn nmse(found: &[f32], expected: &[f32]) -> f64 {
    let error: f64 = found.iter().zip(expected).map(|(f, e)| f64::from(f - e).powi(2)).sum();
    error / expected.iter().map(|&e| f64::from(e).powi(2)).sum::<f64>()
}
