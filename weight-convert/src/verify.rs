//! [`verify`]: compares an MLC folder with its checkpoint.

use std::{
    collections::HashMap,
    fs,
    io::{Read, Seek, SeekFrom},
    path::Path,
};

use half::{bf16, f16};
use model_format::{
    ChatConfig, Checkpoint, Dtype, Error as FormatError, HostTensor, QuantFormat, TensorCache, Weight,
    checkpoint::read_param,
    quant::{QUANT_FORMATS, StoredTensor},
    staging::sum_of_file,
};
use serde::Serialize;

use crate::{Error, Plan, Progress, Result, SourceKind, encode::encode, inspect};

/// The result of a comparison.
#[derive(Debug, Clone, Serialize)]
pub struct Verification {
    /// Every parameter, in the order of the records.
    pub params: Vec<ParamCheck>,
}

impl Verification {
    /// The parameters with wrong values.
    pub fn failures(&self) -> impl Iterator<Item = &ParamCheck> {
        self.params.iter().filter(|check| !check.passes())
    }
}

/// One parameter, compared.
#[derive(Debug, Clone, Serialize)]
pub struct ParamCheck {
    /// MLC's name.
    pub name: String,
    /// True if its values must equal the checkpoint's, because GPTQ codes convert without loss.
    pub lossless: bool,
    /// Largest difference between the folder's values and the checkpoint's.
    pub max_error: f32,
    /// Mean absolute difference.
    pub mean_error: f32,
    /// Largest difference after a new conversion.
    pub expected_error: f32,
    /// Number of values.
    pub values: usize,
    /// Number of values that differ from the checkpoint (if lossless) or from a new conversion. Zeros of both signs are equal.
    pub different: usize,
    /// How many of them differ from the checkpoint by more than half a step of their group. For numbers without codes, all.
    pub wrong: usize,
}

/// Another tool may round a weight halfway between two values to the other one, for at most one in this many weights.
const WEIGHTS_PER_TIE: usize = 100;

impl ParamCheck {
    /// True if no value differs.
    pub fn is_equal(&self) -> bool {
        self.different == 0
    }

    /// True if the parameter is correct: equal, or from another tool that rounds a few weights halfway between two values to the
    /// other one.
    pub fn passes(&self) -> bool {
        self.different == 0 || (!self.lossless && self.wrong == 0 && self.different <= self.values / WEIGHTS_PER_TIE)
    }
}

/// Checks the checksums of all shards, then compares every parameter of the MLC folder `folder` with `checkpoint`.
///
/// Set `format` for a folder without a configuration, unless the shapes determine it.
pub fn verify(
    checkpoint: &dyn Checkpoint,
    folder: &Path,
    format: Option<&'static QuantFormat>,
    progress: &mut dyn Progress,
) -> Result<Verification> {
    let contents = inspect(folder)?;
    let format = match (format, &contents.chat_config) {
        (Some(format), _) => format,
        (None, Some(config)) => QuantFormat::by_name(&config.quantization)?,
        (None, None) => format_of(checkpoint, &contents.cache, folder)?,
    };
    let plan = Plan::new(checkpoint, format)?;
    check_sums(folder, &contents.cache)?;

    let shards = Shards { folder, cache: &contents.cache, places: places(&contents.cache) };
    let mut params = Vec::with_capacity(plan.params.len());
    progress.start(plan.source_bytes);
    for planned in &plan.params {
        if progress.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let param = &planned.param;
        let stored = format.stored(param);
        let tensors = stored.iter().map(|t| shards.tensor(&t.name)).collect::<Result<Vec<_>>>()?;
        let found = format.weight_from_stored(&shards.location(), param, &tensors)?.to_f32();

        let mut encoded = encode(checkpoint, &plan, planned, true)?;
        let converted: Vec<HostTensor<'_>> = stored
            .iter()
            .zip(&mut encoded.tensors)
            .map(|(t, content)| HostTensor {
                dtype: t.disk_dtype(),
                shape: t.shape.clone(),
                bytes: content.bytes().into(),
            })
            .collect();
        let converted: Weight = format.weight_from_stored("a new conversion", param, &converted)?;
        let steps = match &converted {
            Weight::Quantized(matrix) => Some(matrix.steps()),
            Weight::F32 { .. } | Weight::F16 { .. } => None,
        };
        let converted = converted.to_f32();
        let slack = half_step(format.model_dtype());

        let values = read_param(checkpoint, param)?;
        let lossless = format.quantizes(param)
            && (encoded.rounded == 0 || planned.sources.iter().all(|kind| *kind == SourceKind::Gptq))
            && encoded.refits.is_empty();
        let expected = if lossless { &values } else { &converted };
        let different: Vec<usize> = (0..values.len()).filter(|&i| found[i] != expected[i]).collect();
        let is_nearest = |&i: &usize| {
            steps.as_ref().is_some_and(|steps| f64::from((found[i] - values[i]).abs()) <= slack * f64::from(steps[i]))
        };
        params.push(ParamCheck {
            name: param.name.clone(),
            lossless,
            max_error: max_difference(&found, &values),
            mean_error: mean_difference(&found, &values),
            expected_error: max_difference(&converted, &values),
            values: values.len(),
            different: different.len(),
            wrong: different.len() - different.iter().filter(|i| is_nearest(i)).count(),
        });
        for name in planned.source_names() {
            checkpoint.release(&name);
        }
        progress.advance(planned.source_bytes, &param.name);
    }
    Ok(Verification { params })
}

/// Half a step plus the rounding error of the format's arithmetic, whose sums reach 16 steps in its number type.
fn half_step(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::F16 => 0.5 + 16.0 * f64::from(f16::EPSILON) / 2.0,
        // Scales of f32 formats are bf16 on disk.
        _ => 0.5 + 16.0 * f64::from(bf16::EPSILON) / 2.0,
    }
}

/// The format of weights without a configuration: the only one whose tensors match.
fn format_of(checkpoint: &dyn Checkpoint, cache: &TensorCache, folder: &Path) -> Result<&'static QuantFormat> {
    let places = places(cache);
    let mut fitting = Vec::new();
    for format in QUANT_FORMATS {
        let plan = Plan::new(checkpoint, format)?;
        let is_there = |tensor: StoredTensor| {
            places.get(tensor.name.as_str()).is_some_and(|&(shard, record)| {
                let record = &cache.shards[shard].records[record];
                let format_of_f32 = record.f32_as_bf16 || record.dtype != Dtype::F32;
                (record.dtype, &record.shape) == (tensor.dtype, &tensor.shape) && format_of_f32
            })
        };
        if plan.params.iter().flat_map(|planned| format.stored(&planned.param)).all(is_there) {
            fitting.push(format);
        }
    }
    match fitting[..] {
        [format] => Ok(format),
        [] => {
            let file = ChatConfig::FILE_NAME.to_owned();
            Err(FormatError::MissingFile { file, folder: folder.display().to_string() }.into())
        }
        _ => {
            let formats = fitting.iter().map(|format| format.name).collect();
            Err(Error::AmbiguousFormat { folder: folder.display().to_string(), formats })
        }
    }
}

/// The largest absolute difference; infinite for NaN.
fn max_difference(a: &[f32], b: &[f32]) -> f32 {
    let difference = |(a, b): (&f32, &f32)| if a == b { 0.0 } else { (a - b).abs() };
    a.iter().zip(b).map(difference).fold(0.0, |max, d| if d.is_nan() { f32::INFINITY } else { max.max(d) })
}

fn mean_difference(a: &[f32], b: &[f32]) -> f32 {
    let sum: f64 = a.iter().zip(b).map(|(a, b)| if a == b { 0.0 } else { f64::from((a - b).abs()) }).sum();
    (sum / a.len().max(1) as f64) as f32
}

/// Compares every shard with its recorded checksum.
fn check_sums(folder: &Path, cache: &TensorCache) -> Result<()> {
    for shard in &cache.shards {
        let Some(expected) = &shard.md5sum else { continue };
        let path = folder.join(&shard.data_path);
        let found =
            sum_of_file(&path).map_err(|source| FormatError::Io { action: "read", path: path.clone(), source })?;
        if found != *expected {
            let file = path.display().to_string();
            return Err(FormatError::Checksum { file, found, expected: expected.clone() }.into());
        }
    }
    Ok(())
}

/// Shard and record of each tensor, by name.
fn places(cache: &TensorCache) -> HashMap<&str, (usize, usize)> {
    let shards = cache.shards.iter().enumerate();
    shards
        .flat_map(|(s, shard)| shard.records.iter().enumerate().map(move |(r, record)| (record.name.as_str(), (s, r))))
        .collect()
}

struct Shards<'a> {
    folder: &'a Path,
    cache: &'a TensorCache,
    places: HashMap<&'a str, (usize, usize)>,
}

impl Shards<'_> {
    fn location(&self) -> String {
        self.folder.display().to_string()
    }

    /// One tensor, read from its shard.
    fn tensor(&self, name: &str) -> Result<HostTensor<'static>> {
        let missing = || FormatError::MissingParam { name: name.into(), file: self.location(), nearest: None };
        let &(shard, record) = self.places.get(name).ok_or_else(missing)?;
        let shard = &self.cache.shards[shard];
        let record = &shard.records[record];
        let path = self.folder.join(&shard.data_path);
        let bytes = read_range(&path, record.byte_offset as u64, record.nbytes).map_err(|source| FormatError::Io {
            action: "read",
            path,
            source,
        })?;
        let dtype = if record.f32_as_bf16 { Dtype::BF16 } else { record.dtype };
        Ok(HostTensor { dtype, shape: record.shape.clone(), bytes: bytes.into() })
    }
}

fn read_range(path: &Path, offset: u64, length: usize) -> std::io::Result<Vec<u8>> {
    let mut file = fs::File::open(path)?;
    file.seek(SeekFrom::Start(offset))?;
    let mut bytes = vec![0; length];
    file.read_exact(&mut bytes)?;
    Ok(bytes)
}
