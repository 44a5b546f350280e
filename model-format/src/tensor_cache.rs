//! tensor-cache.json (formerly ndarray-cache.json): which tensor lies where in which shard.

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

/// One file of tensors.
#[derive(Debug, Clone, PartialEq)]
pub struct Shard {
    /// File name, a single component.
    pub data_path: String,
    /// Size of the file.
    pub nbytes: usize,
    /// Hex md5 of the file, where the index has it.
    pub md5sum: Option<String>,
    /// What it holds, by rising offset.
    pub records: Vec<Record>,
}

/// One tensor in a shard.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// `model.norm.weight`, `...q_weight`, `...q_scale`.
    pub name: String,
    /// Extents, outermost first.
    pub shape: Vec<usize>,
    /// Number type in memory.
    pub dtype: Dtype,
    /// Whether an f32 tensor is stored as bf16 (`f32-to-bf16`).
    pub f32_as_bf16: bool,
    /// Bytes in the file.
    pub nbytes: usize,
    /// Where they begin.
    pub byte_offset: usize,
}

impl TensorCache {
    /// The file's name, and the older name that WebLLM up to 0.2.79 asks for. Readers try them in this order.
    pub const FILE_NAMES: [&'static str; 2] = ["tensor-cache.json", "ndarray-cache.json"];

    /// Reads and checks the text of an index: names, sizes, offsets, overlaps.
    pub fn parse(file: &str, json: &str) -> Result<TensorCache> {
        let malformed = |reason: String| Error::Malformed { file: file.into(), reason };
        let index: IndexJson = serde_json::from_str(json).map_err(|e| malformed(e.to_string()))?;
        let (mut paths, mut names) = (HashSet::new(), HashSet::new());
        let mut shards = Vec::with_capacity(index.records.len());
        for shard in index.records {
            check_file_name(file, &shard.data_path)?;
            if !paths.insert(shard.data_path.clone()) {
                return Err(malformed(format!("shard `{}` stands there twice", shard.data_path)));
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
                    return Err(malformed(format!("tensor `{name}` stands there twice")));
                }
                if record.byte_offset < end {
                    return Err(malformed(format!(
                        "tensor `{name}` overlaps the one before it in `{}`",
                        shard.data_path
                    )));
                }
                end = record.byte_offset.checked_add(record.nbytes).filter(|&end| end <= shard.nbytes).ok_or_else(
                    || malformed(format!("tensor `{name}` reaches beyond the end of `{}`", shard.data_path)),
                )?;
            }
            shards.push(shard);
        }
        if shards.is_empty() {
            return Err(malformed("`records` names no shard".into()));
        }
        Ok(TensorCache { shards })
    }

    /// The shard and the record of a tensor.
    pub fn find(&self, name: &str) -> Option<(&Shard, &Record)> {
        self.shards.iter().find_map(|shard| shard.records.iter().find(|r| r.name == name).map(|r| (shard, r)))
    }
}

/// The checksum that the index records of a shard.
#[derive(Clone, Default)]
pub struct ShardSum(Md5);

impl ShardSum {
    /// Takes in the next bytes of the shard.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The sum of all bytes, in hexadecimal.
    pub fn finish(self) -> String {
        self.0.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// The file, as far as it is read.
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
            other => return Err(malformed(format!("tensor `{}` has dtype {other:?}, which is not known", self.name))),
        };
        let f32_as_bf16 = match self.format.as_str() {
            // Written for every tensor, meant for f32 alone.
            "f32-to-bf16" => dtype == Dtype::F32,
            "raw" => false,
            other => return Err(malformed(format!("tensor `{}` has format {other:?}, which is not known", self.name))),
        };
        let stored = if f32_as_bf16 { 2 } else { dtype.size() };
        let expected = self.shape.iter().try_fold(stored, |bytes, &extent| bytes.checked_mul(extent));
        if expected != Some(self.nbytes) {
            return Err(malformed(format!(
                "tensor `{}` has {} bytes, but {} of shape {:?} takes {}",
                self.name,
                self.nbytes,
                self.dtype,
                self.shape,
                expected.map_or("more than there can be".into(), |n| n.to_string()),
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
