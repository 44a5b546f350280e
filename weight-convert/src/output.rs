//! A folder that a conversion writes: which files of an earlier one it replaces, and which it puts in their place last.

use std::path::Path;

use model_format::{
    ChatConfig,
    staging::{Layout, Staging},
};

use crate::Result;

/// The indices and the configuration make a folder look whole.
const LAYOUT: Layout = Layout {
    program: "weight-convert",
    markers: &["tensor-cache-b16.json", "ndarray-cache.json", "tensor-cache.json", ChatConfig::FILE_NAME],
};

/// Begins to write to `folder`.
pub(crate) fn stage(folder: &Path) -> Result<Staging> {
    Ok(Staging::new(folder, LAYOUT)?)
}

/// What a conversion writes.
#[derive(Clone, Copy)]
pub(crate) struct Written {
    pub(crate) weights: bool,
    pub(crate) config: bool,
}

/// Puts everything in its place. Shards of an earlier conversion that are not replaced are removed when this one has
/// shards.
pub(crate) fn commit(staging: Staging, written: Written) -> Result<()> {
    let is_old = |name: &str| match name {
        ChatConfig::FILE_NAME => written.config,
        name => written.weights && (LAYOUT.markers.contains(&name) || is_shard(name)),
    };
    Ok(staging.commit(is_old, |_| false)?)
}

fn is_shard(name: &str) -> bool {
    name.starts_with("params_shard_") && name.ends_with(".bin")
}
