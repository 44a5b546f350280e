//! Hugging Face checkpoints: [`Checkpoint`], and its implementation over safetensors files.

use std::path::Path;

use crate::{Dtype, HostTensor, Result};

/// What a checkpoint says of one of its tensors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Checkpoint name, such as `model.norm.weight`.
    pub name: String,
    /// Number type as stored.
    pub dtype: Dtype,
    /// Extents, outermost first.
    pub shape: Vec<usize>,
    /// The file that holds it, for messages and for MLC's record order.
    pub file: String,
}

/// Named tensors, whatever file they come from.
pub trait Checkpoint: Send + Sync {
    /// Every tensor, in the order in which `convert_weight` meets them: the order of the index, or of the file.
    fn tensors(&self) -> &[TensorInfo];
    /// One tensor's bytes, as stored. A missing one is an error that names the nearest.
    fn tensor(&self, name: &str) -> Result<HostTensor<'_>>;
    /// What to call this checkpoint in messages.
    fn location(&self) -> String;
    /// The text of config.json.
    fn config_json(&self) -> &str;
    /// The files that go with the weights (tokenizer.json, tokenizer_config.json, generation_config.json,
    /// chat_template.jinja ...): name and content, those that exist. Includes config.json.
    fn companion_files(&self) -> Result<Vec<(String, Vec<u8>)>>;
}

/// A folder with `config.json` and `model.safetensors`, or shards and `model.safetensors.index.json`. Memory-mapped.
pub struct SafetensorsCheckpoint {}

impl SafetensorsCheckpoint {
    /// Opens a folder: reads the configuration and every header, checks them, maps the files.
    pub fn open(folder: &Path) -> Result<SafetensorsCheckpoint> {
        let _ = folder;
        todo!()
    }
}

impl Checkpoint for SafetensorsCheckpoint {
    fn tensors(&self) -> &[TensorInfo] {
        todo!()
    }
    fn tensor(&self, name: &str) -> Result<HostTensor<'_>> {
        let _ = name;
        todo!()
    }
    fn location(&self) -> String {
        todo!()
    }
    fn config_json(&self) -> &str {
        todo!()
    }
    fn companion_files(&self) -> Result<Vec<(String, Vec<u8>)>> {
        todo!()
    }
}

/// The values of `param` in f32, its sources joined by rows: shapes checked, NaN and infinity refused. GPTQ matrices are
/// dequantized. Values of float tensors are widened, not rounded.
pub fn read_param(checkpoint: &dyn Checkpoint, param: &crate::Param) -> Result<Vec<f32>> {
    let _ = (checkpoint, param);
    todo!()
}
