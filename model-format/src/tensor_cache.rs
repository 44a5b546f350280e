//! [`TensorCache`]: tensor-cache.json (formerly ndarray-cache.json), the index of an MLC folder. It gives the shard and
//! the offset of each tensor.

use std::collections::HashSet;

use md5::{Digest, Md5};
use serde::Deserialize;

use crate::{Dtype, Error, Result, files::check_file_name};

/// The index of an MLC folder's shards.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorCache {
    /// The shards, in the order of their numbers.
    pub shards: Vec<Shard>,
}

/// A file of tensors.
#[derive(Debug, Clone, PartialEq)]
pub struct Shard {
    /// Plain file name.
    pub data_path: String,
    /// Size of the file in bytes.
    pub nbytes: usize,
    /// md5 of the file in hexadecimal, if recorded.
    pub md5sum: Option<String>,
    /// Tensors in ascending order of offset.
    pub records: Vec<Record>,
}

/// A tensor in a shard.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// Name, for example `model.norm.weight`. Quantized matrices have `...q_weight` and `...q_scale`.
    pub name: String,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Number type in memory.
    pub dtype: Dtype,
    /// True if an f32 tensor is stored as bf16 (format `f32-to-bf16`).
    pub f32_as_bf16: bool,
    /// Stored size in bytes.
    pub nbytes: usize,
    /// Position of the first byte in the shard.
    pub byte_offset: usize,
}

impl TensorCache {
    /// The file's name, and the older name that WebLLM up to 0.2.79 requests. Readers try them in this order.
    pub const FILE_NAMES: [&'static str; 2] = ["tensor-cache.json", "ndarray-cache.json"];

    /// Parses the content of an index. `file` is its name, for errors.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`] for invalid JSON, file names with a path, duplicate names, sizes that contradict shapes,
    /// and tensors that overlap or exceed their shard.
    pub fn parse(file: &str, json: &str) -> Result<TensorCache> {
        let malformed = |reason: String| Error::Malformed { file: file.into(), reason };
        let index: IndexJson = serde_json::from_str(json).map_err(|e| malformed(e.to_string()))?;
        let (mut paths, mut names) = (HashSet::new(), HashSet::new());
        let mut shards = Vec::with_capacity(index.records.len());
        for shard in index.records {
            check_file_name(file, &shard.data_path)?;
            if !paths.insert(shard.data_path.clone()) {
                return Err(malformed(format!("shard `{}` occurs twice", shard.data_path)));
            }
            if shard.format != "raw-shard" {
                let (path, format) = (&shard.data_path, &shard.format);
                return Err(malformed(format!("shard `{path}` has format {format:?}, expected `raw-shard`")));
            }
            if let Some(sum) = &shard.md5sum
                && (sum.len() != 32 || !sum.bytes().all(|b| b.is_ascii_hexdigit()))
            {
                return Err(malformed(format!("shard `{}`: {sum:?} is not an md5 sum", shard.data_path)));
            }
            let records = shard.records.into_iter().map(|r| r.checked(file)).collect::<Result<Vec<_>>>()?;
            let mut shard = Shard {
                data_path: shard.data_path,
                nbytes: shard.nbytes,
                md5sum: shard.md5sum.map(|sum| sum.to_ascii_lowercase()),
                records,
            };
            shard.records.sort_by_key(|r| r.byte_offset);
            let mut end = 0;
            for record in &shard.records {
                let name = &record.name;
                if !names.insert(name.clone()) {
                    return Err(malformed(format!("tensor `{name}` occurs twice")));
                }
                if record.byte_offset < end {
                    return Err(malformed(format!(
                        "tensor `{name}` overlaps the previous tensor in `{}`",
                        shard.data_path
                    )));
                }
                end =
                    record.byte_offset.checked_add(record.nbytes).filter(|&end| end <= shard.nbytes).ok_or_else(
                        || malformed(format!("tensor `{name}` ends after the end of `{}`", shard.data_path)),
                    )?;
            }
            shards.push(shard);
        }
        if shards.is_empty() {
            return Err(malformed("`records` has no shards".into()));
        }
        Ok(TensorCache { shards })
    }

    /// Finds the shard and the record of a tensor.
    pub fn find(&self, name: &str) -> Option<(&Shard, &Record)> {
        self.shards.iter().find_map(|shard| shard.records.iter().find(|r| r.name == name).map(|r| (shard, r)))
    }
}

/// Computes a shard's checksum as recorded in the index (md5).
#[derive(Clone, Default)]
pub struct ShardSum(Md5);

impl ShardSum {
    /// Adds the next bytes of the shard.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The md5 of all bytes, in hexadecimal.
    pub fn finish(self) -> String {
        self.0.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// The fields of the file that are read.
#[derive(Deserialize)]
struct IndexJson {
    records: Vec<ShardJson>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ShardJson {
    data_path: String,
    format: String,
    nbytes: usize,
    records: Vec<RecordJson>,
    md5sum: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RecordJson {
    name: String,
    shape: Vec<usize>,
    dtype: String,
    format: String,
    nbytes: usize,
    byte_offset: usize,
}

impl RecordJson {
    fn checked(self, file: &str) -> Result<Record> {
        let malformed = |reason: String| Error::Malformed { file: file.into(), reason };
        if self.name.is_empty() || self.name.chars().any(char::is_control) {
            return Err(malformed(format!("{:?} is not a tensor name", self.name)));
        }
        let dtype = match self.dtype.as_str() {
            "float32" => Dtype::F32,
            "float16" => Dtype::F16,
            "bfloat16" => Dtype::BF16,
            "uint32" => Dtype::U32,
            "int32" => Dtype::I32,
            other => return Err(malformed(format!("tensor `{}` has the unknown dtype {other:?}", self.name))),
        };
        let f32_as_bf16 = match self.format.as_str() {
            // MLC writes this format for every tensor. It applies to f32 only.
            "f32-to-bf16" => dtype == Dtype::F32,
            "raw" => false,
            other => return Err(malformed(format!("tensor `{}` has the unknown format {other:?}", self.name))),
        };
        let stored = if f32_as_bf16 { 2 } else { dtype.size() };
        let expected = self.shape.iter().try_fold(stored, |bytes, &extent| bytes.checked_mul(extent));
        if expected != Some(self.nbytes) {
            return Err(malformed(format!(
                "tensor `{}` has {} bytes, but {} of shape {:?} needs {}",
                self.name,
                self.nbytes,
                self.dtype,
                self.shape,
                expected.map_or("more than the address space".into(), |n| n.to_string()),
            )));
        }
        Ok(Record {
            name: self.name,
            shape: self.shape,
            dtype,
            f32_as_bf16,
            nbytes: self.nbytes,
            byte_offset: self.byte_offset,
        })
    }
}
