//! [`convert_weight`] writes the weights of a checkpoint in a quantization format; [`convert`] also writes the configuration;
//! [`preview`] lists the files of either without writing them.

use std::{path::Path, sync::mpsc, thread};

use model_format::{
    Checkpoint, QuantFormat,
    gptq::Refit,
    staging::{Staging, difference},
};
use serde::Serialize;

use crate::{
    ConfigOptions, ConfigReport, ConfigSource, Error, Plan, Progress, Result, SourceKind,
    encode::{Content, encode},
    fingerprint::fingerprint,
    gen_config,
    output::{FileReport, Written, commit, stage},
    shards::{SHARD_SIZE, ShardWriter, Shards, data_path},
};

/// Encoded tensors that may wait for the disk. A few small ones keep both threads busy.
const WAITING: usize = 4;

/// Options for the weights. The defaults are mlc_llm's.
#[derive(Debug, Clone)]
pub struct WeightOptions {
    /// If the format cannot represent a GPTQ matrix, use the nearest values instead of failing.
    pub refit: bool,
    /// Size of a shard in bytes. Only a shard with a single tensor may reach or exceed it.
    pub shard_size: usize,
    /// Replace files named like those of an MLC folder, regardless of the program that wrote them.
    pub overwrite: bool,
}

impl Default for WeightOptions {
    fn default() -> WeightOptions {
        WeightOptions { refit: false, shard_size: SHARD_SIZE, overwrite: false }
    }
}

/// Options of a conversion.
#[derive(Debug, Clone, Default)]
pub struct ConvertOptions {
    /// For the weights.
    pub weights: WeightOptions,
    /// For the configuration.
    pub config: ConfigOptions,
}

/// The converted weights.
#[derive(Debug, Clone, Serialize)]
pub struct WeightsReport {
    /// The quantization format.
    pub quantization: &'static str,
    /// Number of tensors.
    pub records: usize,
    /// Number of shards.
    pub shards: usize,
    /// Size of the tensors in bytes.
    pub param_bytes: u64,
    /// The same in bits per weight.
    pub bits_per_param: f64,
    /// MLC names of the matrices with exactly the values of the GPTQ checkpoint.
    pub lossless: Vec<String>,
    /// GPTQ matrices that the format could not represent, with the added error.
    pub refitted: Vec<RefitReport>,
    /// Parameters of a GPTQ checkpoint that were rounded to nearest, because it stores them in floating point.
    pub rounded: Vec<String>,
    /// Tensors of the checkpoint that the architecture does not use.
    pub unused: Vec<String>,
    /// Shards and indices.
    pub files: Vec<FileReport>,
    /// Shards that an interrupted conversion had finished.
    pub resumed: usize,
    /// The reason for discarding the shards of an interrupted conversion: its first difference from this one.
    pub begun_anew: Option<String>,
}

/// A matrix with values that the format cannot represent.
#[derive(Debug, Clone, Serialize)]
pub struct RefitReport {
    /// Its module in the checkpoint.
    pub name: String,
    /// The reason for the first changed group.
    pub reason: String,
    /// Number of changed groups.
    pub groups: usize,
    /// Number of all groups.
    pub of_groups: usize,
    /// Largest change of a value.
    pub max_error: f32,
    /// Root mean square of the changes, divided by that of the values.
    pub relative_error: f32,
}

impl From<Refit> for RefitReport {
    fn from(refit: Refit) -> RefitReport {
        let Refit { name, reason, groups, of_groups, max_error, relative_error } = refit;
        RefitReport { name, reason, groups, of_groups, max_error, relative_error }
    }
}

/// A converted checkpoint.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The weights.
    pub weights: WeightsReport,
    /// The configuration.
    pub config: ConfigReport,
}

/// Writes the weights of `checkpoint` to `out` in `format`: shards and their index.
///
/// Holds two tensors in memory at a time. Checks all headers before writing. Resumes an interrupted conversion with the same
/// fingerprint.
pub fn convert_weight(
    checkpoint: &dyn Checkpoint,
    format: &'static QuantFormat,
    options: &WeightOptions,
    out: &Path,
    progress: &mut dyn Progress,
) -> Result<WeightsReport> {
    let work = Work::new(checkpoint, format, options)?;
    let (staging, report) = work.write(out, progress)?;
    commit(staging, Written { weights: true, config: false })?;
    Ok(report)
}

/// Writes a complete folder for the engine: weights, configuration and tokenizer.
pub fn convert(
    checkpoint: &dyn Checkpoint,
    format: &'static QuantFormat,
    options: &ConvertOptions,
    out: &Path,
    progress: &mut dyn Progress,
) -> Result<Report> {
    let work = Work::new(checkpoint, format, &options.weights)?;
    let source = ConfigSource::of(checkpoint)?;
    let config = gen_config::build(&source, format, &options.config)?;
    let (mut staging, weights) = work.write(out, progress)?;
    config.stage(&source, &mut staging)?;
    commit(staging, Written { weights: true, config: true })?;
    Ok(Report { weights, config: config.report })
}

/// Names and exact sizes of the files that [`convert_weight`] would write, or [`convert`] if `config` is set. Writes nothing and
/// reads only headers, so it cannot tell if GPTQ codes convert without loss.
pub fn preview(
    checkpoint: &dyn Checkpoint,
    format: &'static QuantFormat,
    options: &WeightOptions,
    config: Option<&ConfigOptions>,
) -> Result<(WeightsReport, Option<ConfigReport>)> {
    let work = Work::new(checkpoint, format, options)?;
    let config = config
        .map(|options| Ok::<_, Error>(gen_config::build(&ConfigSource::of(checkpoint)?, format, options)?.report))
        .transpose()?;
    Ok((work.report(), config))
}

/// A planned conversion.
struct Work<'a> {
    checkpoint: &'a dyn Checkpoint,
    plan: Plan,
    shards: Shards,
    options: &'a WeightOptions,
}

impl<'a> Work<'a> {
    fn new(
        checkpoint: &'a dyn Checkpoint,
        format: &'static QuantFormat,
        options: &'a WeightOptions,
    ) -> Result<Work<'a>> {
        let plan = Plan::new(checkpoint, format)?;
        let stored = plan.params.iter().flat_map(|planned| format.stored(&planned.param)).collect();
        let shards = Shards::new(stored, options.shard_size, plan.elements);
        Ok(Work { checkpoint, plan, shards, options })
    }

    /// The report, as far as headers determine it.
    fn report(&self) -> WeightsReport {
        let (format, shards) = (self.plan.format, &self.shards);
        let (mut lossless, mut rounded) = (Vec::new(), Vec::new());
        for planned in self.plan.params.iter().filter(|p| self.plan.gptq.is_some() && p.param.role.is_matrix()) {
            let codes = format.quantizes(&planned.param) && planned.sources.iter().all(|k| *k == SourceKind::Gptq);
            if codes { &mut lossless } else { &mut rounded }.push(planned.param.name.clone());
        }
        let shard_file =
            |(number, &bytes): (usize, &usize)| FileReport { name: data_path(number), bytes: bytes as u64 };
        let mut files: Vec<_> = shards.sizes.iter().enumerate().map(shard_file).collect();
        // The content of the sums does not matter here: all MD5 sums have the same length.
        for (name, text) in shards.indices(&vec!["0".repeat(32); shards.sizes.len()]) {
            files.push(FileReport { name: name.into(), bytes: text.len() as u64 });
        }
        WeightsReport {
            quantization: format.name,
            records: shards.tensors.len(),
            shards: shards.sizes.len(),
            param_bytes: shards.param_bytes(),
            bits_per_param: shards.bits_per_param(),
            lossless,
            refitted: Vec::new(),
            rounded,
            unused: self.plan.unused.clone(),
            files,
            resumed: 0,
            begun_anew: None,
        }
    }

    /// Writes shards and indices. One thread writes while the others encode the next tensor.
    fn write(&self, out: &Path, progress: &mut dyn Progress) -> Result<(Staging, WeightsReport)> {
        let fingerprint = fingerprint(self.checkpoint, &self.plan, self.options.shard_size, self.options.refit);
        let mut staging = stage(out, self.options.overwrite)?;
        let begun_anew = staging.interrupted_fingerprint().and_then(|left| {
            let left = serde_json::from_str(&left).unwrap_or_default();
            let (what, was, is) = difference("", &left, &fingerprint)?;
            Some(format!("`{what}` was {was}, now it is {is}"))
        });
        let finished = staging.resume(&fingerprint.to_string())?;
        let mut report = WeightsReport { resumed: finished.len(), begun_anew, ..self.report() };
        let mut writer = ShardWriter::new(&mut staging, &self.shards, &finished);
        let is_finished = writer.finished();
        let (sender, receiver) = mpsc::sync_channel::<Piece>(WAITING);
        let (encoded, written) = thread::scope(|scope| {
            let thread = scope.spawn(move || {
                for piece in receiver {
                    match piece {
                        Piece::Skip(count) => writer.skip(count),
                        Piece::Write(mut content) => writer.write(content.bytes())?,
                        Piece::End => return writer.finish(),
                    }
                }
                Ok(())
            });
            let encoded = self.encode_all(&is_finished, &sender, &mut report, progress);
            drop(sender);
            (encoded, thread.join().expect("the writing thread does not panic"))
        });
        // If the writer fails, encoding fails too, because its channel is closed. Report the writer's error.
        match written.and(encoded) {
            Ok(()) => Ok((staging, report)),
            Err(error) => {
                // After a stop or a full disk, finished shards stay valid.
                if matches!(error, Error::Cancelled | Error::Format(model_format::Error::Io { .. })) {
                    staging.keep_finished();
                }
                Err(error)
            }
        }
    }

    fn encode_all(
        &self,
        is_finished: &[bool],
        sender: &mpsc::SyncSender<Piece>,
        report: &mut WeightsReport,
        progress: &mut dyn Progress,
    ) -> Result<()> {
        let send = |piece| sender.send(piece).map_err(|mpsc::SendError(_)| Error::Cancelled);
        progress.start(self.plan.source_bytes);
        let mut next = 0;
        for planned in &self.plan.params {
            if progress.is_cancelled() {
                return Err(Error::Cancelled);
            }
            let count = self.plan.format.stored(&planned.param).len();
            let tensors = &self.shards.tensors[next..next + count];
            next += count;
            let reports_refits = self.options.refit && planned.sources.contains(&SourceKind::Gptq);
            if !reports_refits && tensors.iter().all(|(_, place)| is_finished[place.shard]) {
                send(Piece::Skip(count))?;
            } else {
                let encoded = encode(self.checkpoint, &self.plan, planned, self.options.refit)?;
                if !encoded.refits.is_empty() {
                    report.lossless.retain(|name| *name != planned.param.name);
                    report.refitted.extend(encoded.refits.into_iter().map(RefitReport::from));
                }
                if encoded.rounded == 0
                    && report.rounded.contains(&planned.param.name)
                    && self.plan.format.quantizes(&planned.param)
                {
                    report.rounded.retain(|name| *name != planned.param.name);
                    report.lossless.push(planned.param.name.clone());
                }
                for content in encoded.tensors {
                    send(Piece::Write(content))?;
                }
                for name in planned.source_names() {
                    self.checkpoint.release(&name);
                }
            }
            progress.advance(planned.source_bytes, &planned.param.name);
        }
        if progress.is_cancelled() {
            return Err(Error::Cancelled);
        }
        send(Piece::End)
    }
}

/// A message to the writing thread.
enum Piece {
    /// This many tensors are in shards that an interrupted conversion finished.
    Skip(usize),
    Write(Content),
    /// All tensors are encoded: write the indices.
    End,
}
