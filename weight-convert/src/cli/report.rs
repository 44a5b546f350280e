//! The reports of the commands, as text or JSON.

use std::{io, path::Path};

use command_line::print_json;
use serde_json::{Value, json};
use weight_convert::{ConfigReport, Contents, ParamCheck, RefitReport, Verification, WeightsReport};

/// Limits that `verify` gets from the user, in addition to its own rule.
pub struct Limits {
    pub max_error: Option<f32>,
    pub mean_error: Option<f32>,
}

impl Limits {
    /// True if a parameter's error exceeds one of them. NaN exceeds any.
    pub fn are_exceeded(&self, check: &ParamCheck) -> bool {
        let exceeds = |error: f32, limit: Option<f32>| limit.is_some_and(|limit| error.is_nan() || error > limit);
        exceeds(check.max_error, self.max_error) || exceeds(check.mean_error, self.mean_error)
    }
}

pub fn weights(report: &WeightsReport, out: &Path) {
    if report.resumed > 0 {
        println!("resumed: {} shards were complete", report.resumed);
    }
    if let Some(why) = &report.begun_anew {
        println!("discarded the shards of an interrupted conversion, in which {why}");
    }
    println!(
        "wrote {} tensors in {} shards to `{}`: {:.1} MB, {:.3} bits per weight",
        report.records,
        report.shards,
        out.display(),
        report.param_bytes as f64 / 1e6,
        report.bits_per_param
    );
    conversions(report);
}

/// How the values were converted: without loss, refitted, or rounded.
fn conversions(report: &WeightsReport) {
    if !report.lossless.is_empty() || !report.rounded.is_empty() || !report.refitted.is_empty() {
        println!("{} matrices keep the values of the GPTQ checkpoint exactly", report.lossless.len());
    }
    for RefitReport { name, reason, groups, of_groups, max_error, relative_error } in &report.refitted {
        println!(
            "refitted `{name}`: {groups} of {of_groups} groups, added error {:.3} % (max {max_error:.3e}): {reason}",
            relative_error * 100.0
        );
    }
    if !report.rounded.is_empty() {
        println!(
            "rounded to nearest, because the GPTQ checkpoint stores them in floating point: {}",
            some(&report.rounded)
        );
    }
    if !report.unused.is_empty() {
        println!("unused tensors: {}", some(&report.unused));
    }
}

pub fn config(report: &ConfigReport) {
    let how = if report.inferred { " (inferred from the checkpoint)" } else { "" };
    println!("conversation template `{}`{how}, tokenizer: {}", report.conv_template, report.tokenizer_files.join(", "));
    for note in &report.notes {
        println!("note: {note}");
    }
}

/// The files that a run without `--dry-run` would write.
pub fn preview(weights: &WeightsReport, config: Option<&ConfigReport>, out: &Path, as_json: bool) -> io::Result<()> {
    let files: Vec<_> = weights.files.iter().chain(config.into_iter().flat_map(|config| &config.files)).collect();
    let total: u64 = files.iter().map(|file| file.bytes).sum();
    if as_json {
        return print_json(&json!({ "dry_run": true, "total_bytes": total, "weights": weights, "config": config }));
    }
    for file in &files {
        println!("{:>13}  {}", file.bytes, file.name);
    }
    println!(
        "would write {} tensors in {} shards to `{}`: {total} bytes in all, {:.3} bits per weight",
        weights.records,
        weights.shards,
        out.display(),
        weights.bits_per_param
    );
    conversions(weights);
    if let Some(report) = config {
        self::config(report);
    }
    Ok(())
}

pub fn verification(verification: &Verification, limits: &Limits, failures: usize) {
    let width = verification.params.iter().map(|p| p.name.len()).max().unwrap_or(0);
    for check in &verification.params {
        let verdict = match check.different {
            _ if limits.are_exceeded(check) && check.passes() => "FURTHER from the checkpoint than allowed".to_owned(),
            0 if check.lossless => "equal to the checkpoint".to_owned(),
            0 => "equal to a new conversion".to_owned(),
            n if check.passes() => format!("like a new conversion, except {n} of {} values", check.values),
            n => format!("DIFFERENT in {n} of {} values", check.values),
        };
        let (max, mean) = (format!("{:.3e}", check.max_error), format!("{:.3e}", check.mean_error));
        println!("{:width$}  max error {max:<10}  mean {mean:<10}  {verdict}", check.name);
    }
    let lossless = verification.params.iter().filter(|p| p.lossless).count();
    println!("{} parameters ({lossless} lossless), {failures} different", verification.params.len());
}

pub fn contents(contents: &Contents, tensors: bool) {
    if let Some(config) = &contents.chat_config {
        let template = config.value["conv_template"]["name"].as_str().unwrap_or("none");
        let context = config.context_window_size.map_or("unlimited".into(), |size| size.to_string());
        println!("model type         {}", config.model_type);
        println!("quantization       {}", config.quantization);
        println!("context            {context}");
        println!("conversations      {template}");
        println!("tokenizer          {}", config.tokenizer_files.join(", "));
    }
    let records = || contents.cache.shards.iter().flat_map(|shard| &shard.records);
    println!("tensors            {}", records().count());
    println!("bytes              {}", records().map(|r| r.nbytes).sum::<usize>());
    for shard in &contents.cache.shards {
        println!("{}  {} bytes, {} tensors", shard.data_path, shard.nbytes, shard.records.len());
        if tensors {
            for r in &shard.records {
                println!("  {:>10}  {:8}  {:?}  {}", r.byte_offset, r.dtype.to_string(), r.shape, r.name);
            }
        }
    }
}

pub fn contents_json(contents: &Contents) -> Value {
    let config = contents.chat_config.as_ref();
    let shards = contents.cache.shards.iter().map(|shard| {
        let records = shard.records.iter().map(|r| {
            json!({
                "name": r.name, "shape": r.shape, "dtype": r.dtype.to_string(),
                "nbytes": r.nbytes, "byte_offset": r.byte_offset,
            })
        });
        json!({
            "name": shard.data_path, "nbytes": shard.nbytes, "md5sum": shard.md5sum,
            "tensors": records.collect::<Vec<_>>(),
        })
    });
    json!({
        "model_type": config.map(|c| &c.model_type),
        "quantization": config.map(|c| &c.quantization),
        "context_window_size": config.map(|c| c.context_window_size),
        "conv_template": config.map(|c| &c.value["conv_template"]["name"]),
        "tokenizer_files": config.map(|c| &c.tokenizer_files),
        "shards": shards.collect::<Vec<_>>(),
    })
}

/// The first names of a list.
fn some(names: &[String]) -> String {
    const SHOWN: usize = 8;
    let shown = names.iter().take(SHOWN).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN { format!("{shown} and {} more", names.len() - SHOWN) } else { shown }
}
