//! `cargo xtask demo`: the whole pipeline on a small real model, through the programs that users run.
//!
//! Fetch, quantize, convert, measure, ask. Each step prints its command before it runs, so the demo is also an example.
//! Outputs are in `target/demo/`. A step with an existing output is skipped.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{
    programs::{DEMO_PROGRAMS, cargo, program},
    setup,
    step::{Steps, seconds, shown, size},
};

/// The name by which every program knows the demo model.
const MODEL: &str = "demo";
const QUESTION: &str = "What is the capital of France?";
const ANSWER: &str = "Paris";
/// Limit of the answers. A model of this size writes on without end at temperature 0.
const MAX_TOKENS: &str = "20";

/// Options of the demo.
#[derive(clap::Args)]
pub struct Options {
    /// Repeat every step, also finished ones
    #[arg(long)]
    fresh: bool,
}

/// Calibration windows, of the quantizer's 192.
const SAMPLES: &str = "32";

/// Fetches, quantizes, converts, measures and asks.
pub fn run(root: &Path, options: &Options) -> Result<()> {
    let mut steps = Steps::new()?;
    setup::vulkan()?;
    let out = root.join("target").join("demo");
    if options.fresh && out.exists() {
        fs::remove_dir_all(&out).with_context(|| format!("cannot remove `{}`", out.display()))?;
    }
    fs::create_dir_all(&out).with_context(|| format!("cannot create `{}`", out.display()))?;
    let program = |name: &str| program(root, name);
    // Outputs are named from the root, so that a command can be repeated as it is printed.
    let gptq = "target/demo/SmolLM2-135M-Instruct-gptq";
    let mlc = "target/demo/SmolLM2-135M-Instruct-q4f16_1";

    steps.run("compile", &mut cargo(root, DEMO_PROGRAMS))?;

    let mut original = program("chat-cli");
    original.args(["perplexity", MODEL, "--device", "cpu"]);
    let before = perplexity(&mut steps, "fetch; perplexity before", &mut original)?;

    let mut quantize = program("gptq-quant");
    quantize.args([MODEL, "--grid", "q4f16_1", "--samples", SAMPLES, "-o", gptq]);
    let quantized = once(&mut steps, "quantize", "", &mut quantize, &root.join(gptq))?;

    let mut convert = program("weight-convert");
    convert.args(["convert", gptq, "--quantization", "q4f16_1", "-o", mlc]);
    once(&mut steps, "convert", &quantized, &mut convert, &root.join(mlc))?;
    let weights = Weights::read(&root.join(mlc))?;
    let verified = steps.capture("verify", program("weight-convert").args(["verify", gptq, mlc]))?;

    let mut converted = program("chat-cli");
    converted.args(["perplexity", mlc, "--device", "cpu"]);
    let after = perplexity(&mut steps, "perplexity after", &mut converted)?;

    let mut answers = Vec::new();
    let devices = steps.capture("devices", program("chat-cli").args(["devices", "--json"]))?;
    for device in [pick_gpu(&devices)?, Some("cpu".into())].into_iter().flatten() {
        let mut ask = program("chat-cli");
        ask.args(["chat", mlc, "-p", QUESTION, "--temperature", "0", "--max-tokens", MAX_TOKENS]);
        ask.args(["--device", &device, "--json"]);
        let answer = steps.capture(&format!("ask, device {device}"), &mut ask)?;
        answers.push(Answer::read(&answer)?);
    }

    println!("\n{:<24}{:>14}{:>20}", "SmolLM2-135M-Instruct", "original, f16", "quantized, q4f16_1");
    println!("{:<24}{:>14}{:>20}", "size of the weights", size(weights.count * 2), size(weights.bytes));
    println!("{:<24}{:>14.2}{:>20.2}", "bits per weight", 16.0, weights.bits_per_weight);
    println!("{:<24}{before:>14.2}{after:>20.2}", "perplexity, short text");
    println!("{}", verified.lines().last().unwrap_or_default());
    println!("\n{QUESTION}");
    for Answer { device, text, prefill, decode } in &answers {
        println!("  {text}\n    {device}: prefill {prefill:.1} tokens/s, decode {decode:.1} tokens/s");
    }
    if answers.len() == 1 {
        println!("  (no Vulkan device was found, so only the CPU answers)");
    }
    println!();
    for taken in &steps.taken {
        let memory = taken.peak_memory.map(size).unwrap_or_default();
        println!("{:<24}{:>14}{memory:>20}", taken.title, seconds(taken.time));
    }
    println!(
        "Shortened for two processor cores: {SAMPLES} calibration windows instead of 192. All other settings are defaults."
    );
    let wrong = answers.iter().find(|answer| !answer.text.contains(ANSWER));
    if let Some(Answer { device, text, .. }) = wrong {
        anyhow::bail!("the answer on {device} does not name {ANSWER}: {text}");
    }
    println!("\nNext:");
    for (purpose, command) in [
        ("talk to the model", shown(program("chat-cli").args(["chat", mlc]))),
        (
            "quantize another one",
            shown(program("gptq-quant").args(["Qwen/Qwen3-0.6B", "--grid", "q4f16_1", "-o", "qwen3"])),
        ),
        ("run it in a browser", "cargo xtask web".into()),
    ] {
        println!("  {command:<80}# {purpose}");
    }
    Ok(())
}

/// Runs a command that writes a folder, unless the same command wrote it before from the output of the same earlier commands
/// (`before`). Returns all commands so far.
fn once(steps: &mut Steps, title: &str, before: &str, command: &mut Command, output: &Path) -> Result<String> {
    let stamp = PathBuf::from(format!("{}.command", output.display()));
    let commands = format!("{before}{}\n", shown(command));
    if output.exists() {
        if fs::read_to_string(&stamp).is_ok_and(|written| written == commands) {
            eprintln!("\n== {title}: finished earlier, in `{}` (`--fresh` repeats it)", output.display());
            return Ok(commands);
        }
        fs::remove_dir_all(output).with_context(|| format!("cannot remove `{}`", output.display()))?;
    }
    steps.run(title, command)?;
    fs::write(&stamp, &commands).with_context(|| format!("cannot write `{}`", stamp.display()))?;
    Ok(commands)
}

fn perplexity(steps: &mut Steps, title: &str, command: &mut Command) -> Result<f64> {
    let report = steps.capture(title, command.arg("--json"))?;
    let report: Value = serde_json::from_str(&report).context("cannot read the report of `chat-cli perplexity`")?;
    report["perplexity"].as_f64().context("the report of `chat-cli perplexity` has no `perplexity`")
}

/// The number of the first real GPU, else of a software one.
fn pick_gpu(devices: &str) -> Result<Option<String>> {
    let devices: Value = serde_json::from_str(devices).context("cannot read the report of `chat-cli devices`")?;
    let devices = devices.as_array().context("the report of `chat-cli devices` is no list")?;
    let real = devices.iter().find(|device| device["is_software"] == false);
    Ok(real.or(devices.first()).map(|device| device["device"].to_string()))
}

/// Size of the weights, from the index of an MLC folder.
struct Weights {
    count: u64,
    bytes: u64,
    bits_per_weight: f64,
}

impl Weights {
    fn read(folder: &Path) -> Result<Weights> {
        let path = folder.join("tensor-cache.json");
        let index = fs::read_to_string(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
        let index: Value = serde_json::from_str(&index).with_context(|| format!("cannot read `{}`", path.display()))?;
        let bytes = index["metadata"]["ParamBytes"].as_f64().context("`ParamBytes` is missing")?;
        let bits_per_weight = index["metadata"]["BitsPerParam"].as_f64().context("`BitsPerParam` is missing")?;
        ensure!(bits_per_weight > 0.0, "`BitsPerParam` is {bits_per_weight}");
        Ok(Weights { count: (bytes * 8.0 / bits_per_weight).round() as u64, bytes: bytes as u64, bits_per_weight })
    }
}

/// One answer of `chat-cli --json`.
struct Answer {
    device: String,
    text: String,
    prefill: f64,
    decode: f64,
}

impl Answer {
    fn read(report: &str) -> Result<Answer> {
        let report: Value = serde_json::from_str(report).context("cannot read the report of `chat-cli`")?;
        let text = |name: &str| report[name].as_str().map(|text| text.trim().to_string());
        let rate = |name: &str| report["stats"][name].as_f64();
        let read = || {
            Some(Answer {
                device: text("device")?,
                text: text("text")?,
                prefill: rate("prefill_tokens_per_s")?,
                decode: rate("decode_tokens_per_s")?,
            })
        };
        read().context("the report of `chat-cli` lacks a field")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_real_gpu_comes_first() {
        let software = r#"{"device": 0, "is_software": true}"#;
        let real = r#"{"device": 1, "is_software": false}"#;
        let pick = |devices: &[&str]| pick_gpu(&format!("[{}]", devices.join(","))).unwrap();
        assert_eq!(pick(&[software, real]).as_deref(), Some("1"));
        assert_eq!(pick(&[software]).as_deref(), Some("0"));
        assert_eq!(pick(&[]), None);
    }
}
