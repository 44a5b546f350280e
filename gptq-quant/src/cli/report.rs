//! The report of a run, and what `--eval` measures.

use anyhow::{Context, Result};
use gptq_quant::{CheckpointWriter, Evaluation, Report, Settings, Timings, evaluate};
use infer_core::block_on;
use model_format::{Checkpoint, SafetensorsCheckpoint};

use super::{
    Args, Bars,
    device::{Device, with_ops},
    peak_memory,
    texts::{Evaluated, Texts},
};

/// What came of a run.
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

/// Measures what quantizing cost, unless the report in the output folder says it already, and puts it there.
pub fn measure(
    args: &Args,
    settings: &Settings,
    checkpoint: &dyn Checkpoint,
    device: &Device,
    evaluated: &Evaluated,
    bars: &mut Bars,
) -> Result<()> {
    let folder = &args.output;
    let mut report = Report::read(folder)?.with_context(|| format!("`{}` has no report", folder.display()))?;
    let Evaluated { name, windows, prefix_len } = evaluated;
    let is_known = |known: &Evaluation| {
        (&known.text, known.seq_len, known.windows.len()) == (name, windows.seq_len(), windows.len())
    };
    let evaluation = match report.evaluation.take().filter(is_known) {
        Some(known) => known,
        None => {
            let quantized = SafetensorsCheckpoint::open(folder)?;
            let (models, memory) = ([checkpoint, &quantized], settings.activation_memory);
            let found = with_ops!(device, ops => {
                let mut ops = ops;
                block_on(evaluate(&mut ops, models, name, windows, *prefix_len, memory, bars))
            })?;
            bars.clear();
            found
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
