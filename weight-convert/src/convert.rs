//! [`convert_weight`]: the weights of a checkpoint in a quantization format. [`convert`]: with the configuration.

use std::path::Path;

use model_format::{Checkpoint, QuantFormat};

use crate::{
    ConfigOptions, ConfigReport, ConfigSource, Error, Plan, Progress, Result, SourceKind, encode::encode, gen_config,
    shards::ShardWriter, staging::Staging,
};

/// What became of the weights.
#[derive(Debug, Clone)]
pub struct WeightsReport {
    /// Tensors written.
    pub records: usize,
    /// Files that they are in.
    pub shards: usize,
    /// Bytes that they take in memory.
    pub param_bytes: u64,
    /// The same, per weight.
    pub bits_per_param: f64,
    /// Matrices whose values are exactly those of the GPTQ checkpoint, by their MLC names.
    pub lossless: Vec<String>,
    /// Parameters that were rounded to nearest although the checkpoint is a GPTQ one: it holds them in floating point.
    pub rounded: Vec<String>,
    /// Tensors of the checkpoint that the architecture has no use for.
    pub unused: Vec<String>,
}

/// What became of a checkpoint.
#[derive(Debug, Clone)]
pub struct Report {
    /// The weights.
    pub weights: WeightsReport,
    /// The configuration.
    pub config: ConfigReport,
}

/// Writes the weights of `checkpoint` to `out` in `format`: shards and their index.
///
/// Memory: one tensor at a time. All that headers tell is checked before anything is written.
pub fn convert_weight(
    checkpoint: &dyn Checkpoint,
    format: &'static QuantFormat,
    out: &Path,
    progress: &mut dyn Progress,
) -> Result<WeightsReport> {
    let plan = Plan::new(checkpoint, format)?;
    let mut staging = Staging::new(out)?;
    let report = write_weights(checkpoint, &plan, &mut staging, progress)?;
    staging.commit()?;
    Ok(report)
}

/// Writes everything that the engine needs: weights, configuration and tokenizer.
pub fn convert(
    checkpoint: &dyn Checkpoint,
    format: &'static QuantFormat,
    options: &ConfigOptions,
    out: &Path,
    progress: &mut dyn Progress,
) -> Result<Report> {
    let plan = Plan::new(checkpoint, format)?;
    let source = ConfigSource::of(checkpoint)?;
    let config = gen_config::build(&source, format, options)?;
    let mut staging = Staging::new(out)?;
    let weights = write_weights(checkpoint, &plan, &mut staging, progress)?;
    config.stage(&source, &mut staging)?;
    staging.commit()?;
    Ok(Report { weights, config: config.report })
}

fn write_weights(
    checkpoint: &dyn Checkpoint,
    plan: &Plan,
    staging: &mut Staging,
    progress: &mut dyn Progress,
) -> Result<WeightsReport> {
    let format = plan.format;
    let stored = plan.params.iter().flat_map(|planned| format.stored(&planned.param)).collect();
    let mut writer = ShardWriter::new(staging, stored);
    let (mut lossless, mut rounded) = (Vec::new(), Vec::new());
    progress.start(plan.source_bytes);
    for planned in &plan.params {
        if progress.is_cancelled() {
            return Err(Error::Cancelled);
        }
        for bytes in encode(checkpoint, plan.gptq.as_ref(), format, planned)? {
            writer.write(&bytes)?;
        }
        let name = &planned.param.name;
        if plan.gptq.is_some() && planned.param.role.is_matrix() {
            let codes = format.group().is_some() && planned.sources.iter().all(|kind| *kind == SourceKind::Gptq);
            if codes { lossless.push(name.clone()) } else { rounded.push(name.clone()) }
        }
        progress.advance(planned.source_bytes, name);
    }
    if progress.is_cancelled() {
        return Err(Error::Cancelled);
    }
    let totals = writer.finish(plan.elements)?;
    Ok(WeightsReport {
        records: totals.records,
        shards: totals.shards,
        param_bytes: totals.param_bytes,
        bits_per_param: totals.bits_per_param,
        lossless,
        rounded,
        unused: plan.unused.clone(),
    })
}
