//! The report of a run, and the measurements of `--eval`.

use anyhow::{Context, Result};
use command_line::peak_memory;
use gptq_quant::{CheckpointWriter, Evaluation, Report, Settings, Timings, evaluate, run::sum_of_windows};
use infer_core::block_on;
use model_format::{
    Checkpoint, SafetensorsCheckpoint,
    staging::{difference, sum_of_file},
    steps,
};
use serde_json::{Value, json};

use super::{
    args::Args,
    device::{Device, with_ops},
    progress::RunProgress,
    texts::{Evaluated, Texts},
};

/// The report of a finished run.
pub fn report(
    args: &Args,
    settings: &Settings,
    device: &Device,
    texts: &Texts,
    writer: &CheckpointWriter<'_>,
    timings: &Timings,
) -> Report {
    let Timings { forward, hessian, factoring, quantization, report } = *timings;
    let seconds = [
        ("forward", forward),
        ("hessian", hessian),
        ("factoring", factoring),
        ("quantization", quantization),
        ("report", report),
        ("total", timings.total()),
    ];
    Report {
        program: concat!("gptq-quant ", env!("CARGO_PKG_VERSION")).into(),
        model: args.model.clone(),
        device: device.to_string(),
        settings: serde_json::to_value(settings).expect("settings serialize"),
        sources: texts.sources.clone(),
        seq_len: texts.calibration.seq_len(),
        prefix_tokens: texts.prefix_tokens.clone(),
        matrices: writer.reports().collect(),
        seconds: seconds.into_iter().map(|(name, time)| (name.to_owned(), time.as_secs_f64())).collect(),
        peak_memory: peak_memory(),
        evaluation: None,
    }
}

/// Measures the original and the quantized model, unless the report in the output folder has this measurement, and stores the
/// result there. `float` is the checksum of the original model.
pub fn measure(
    args: &Args,
    settings: &Settings,
    checkpoint: &dyn Checkpoint,
    float: &str,
    device: &Device,
    evaluated: &Evaluated,
    progress: &mut RunProgress,
) -> Result<()> {
    let folder = &args.output;
    let mut report = Report::read(folder)?.with_context(|| format!("`{}` has no report", folder.display()))?;
    let Evaluated { name, windows, prefix_len } = evaluated;
    let basis = basis(args, float, evaluated)?;
    let changed = |known: &Evaluation| difference("", &known.basis, &basis);
    let evaluation = match report.evaluation.take().map(|known| (changed(&known), known)) {
        Some((None, known)) => Evaluation { text: name.clone(), ..known },
        known => {
            if let Some((Some((what, was, is)), _)) = known {
                progress.say(&format!("measuring again: `{what}` was {was}, now it is {is}"));
            }
            let quantized = SafetensorsCheckpoint::open(folder)?;
            let (models, memory) = ([checkpoint, &quantized], settings.activation_memory);
            let found = with_ops!(device, ops => {
                let mut ops = ops;
                block_on(evaluate(&mut ops, models, name, windows, *prefix_len, memory, progress))
            })?;
            progress.clear();
            Evaluation { basis, ..found }
        }
    };
    println!(
        "perplexity {:.4} before, {:.4} quantized ({:+.2} %); divergence {:.5} nats per token; {} windows of {} tokens of \
         `{name}`, {}",
        evaluation.float_perplexity,
        evaluation.perplexity,
        (evaluation.perplexity / evaluation.float_perplexity - 1.0) * 100.0,
        evaluation.divergence,
        windows.len(),
        windows.seq_len(),
        report.beginning()
    );
    report.evaluation = Some(evaluation);
    Ok(report.write(folder)?)
}

/// All inputs of a measurement, by content. If one changes, it is measured again.
fn basis(args: &Args, float: &str, evaluated: &Evaluated) -> Result<Value> {
    let sum = |name: &str| {
        let path = args.output.join(name);
        sum_of_file(&path).with_context(|| format!("cannot read `{}`", path.display()))
    };
    Ok(json!({
        "text": {
            "tokens": sum_of_windows(&evaluated.windows),
            "seq_len": evaluated.windows.seq_len(),
            "windows": evaluated.windows.len(),
            "prefix_tokens": evaluated.prefix_len,
        },
        "protocol": if args.eval_wikitext { "rows of WikiText joined" } else { "text as it is" },
        "float": float,
        "quantized": { "weights": sum("model.safetensors")?, "config": sum("config.json")? },
        "steps": steps::numbers(steps::EVALUATE),
    }))
}
