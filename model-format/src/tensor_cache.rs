//! tensor-cache.json (formerly ndarray-cache.json): which tensor lies where in which shard.

use crate::{Dtype, Result};

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
        let _ = (file, json);
        todo!()
    }
}
