//! [`open`]: from what a user names to a [`Model`].

use std::path::PathBuf;

use model_format::Checkpoint;

use crate::{HubConfig, Progress, Result};

/// What a source turned out to be.
pub enum Model {
    /// Weights to convert, quantize or run as they are: a Hugging Face checkpoint (float or GPTQ), or a GGUF file.
    Checkpoint(Box<dyn Checkpoint>),
    /// A folder that the engine loads: `mlc-chat-config.json`, an index, shards, tokenizer.
    Mlc(PathBuf),
}

impl Model {
    /// The checkpoint; an error that says what is needed where this is an MLC folder.
    pub fn into_checkpoint(self) -> Result<Box<dyn Checkpoint>> {
        todo!()
    }
}

/// Opens what `source` names (see the [crate's](crate) table), fetching it first where it is not on this machine.
pub fn open(source: &str, hub: &HubConfig, progress: &mut dyn Progress) -> Result<Model> {
    let _ = (source, hub, progress);
    todo!()
}
