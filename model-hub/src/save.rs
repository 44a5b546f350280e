//! [`save_checkpoint`]: any checkpoint as a plain Hugging Face folder.

use std::path::Path;

use model_format::Checkpoint;

use crate::Result;

/// Writes `checkpoint` to `folder` as `model.safetensors` with `config.json` and the files that go with it.
///
/// Each file appears complete or not at all, `config.json` last. Memory: one tensor at a time.
pub fn save_checkpoint(checkpoint: &dyn Checkpoint, folder: &Path) -> Result<()> {
    let _ = (checkpoint, folder);
    todo!()
}
