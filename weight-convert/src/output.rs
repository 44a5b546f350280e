//! The output folder: its allowed previous content, the files that a conversion replaces, and the files that are renamed last.

use std::{collections::HashSet, fs, path::Path};

use model_format::{
    ChatConfig, TensorCache,
    staging::{Layout, Staging},
};
use serde::Serialize;

use crate::{Result, tokenizer_info::TOKENIZER_FILES};

/// A file of an MLC folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileReport {
    /// Its name.
    pub name: String,
    /// Its size.
    pub bytes: u64,
}

/// A folder with an index or a configuration counts as complete, so these are renamed last.
const LAYOUT: Layout = Layout {
    program: "weight-convert",
    markers: &["tensor-cache-b16.json", "ndarray-cache.json", "tensor-cache.json", ChatConfig::FILE_NAME],
};

/// A Jinja template. MLC ignores it; our engine prefers it to MLC's template.
pub(crate) const CHAT_TEMPLATE: &str = "chat_template.jinja";

/// Begins to write to `folder`. It must be absent, empty, or an MLC folder whose index and configuration name every file. With
/// `overwrite`, other files named like those of an MLC folder are replaced too.
pub(crate) fn stage(folder: &Path, overwrite: bool) -> Result<Staging> {
    let staging = Staging::new(folder, LAYOUT)?;
    let listed = listed(folder);
    let replaceable = |name: &str| listed.contains(name) || (overwrite && is_named_like_ours(name));
    staging.check_folder(is_named_like_ours, replaceable)?;
    Ok(staging)
}

/// Fails if a conversion would refuse the folder. Changes nothing.
pub fn check_output(folder: &Path, overwrite: bool) -> Result<()> {
    stage(folder, overwrite).map(drop)
}

/// The files that the index and the configuration of an MLC folder name; empty for another folder.
fn listed(folder: &Path) -> HashSet<String> {
    let read = |name: &str| fs::read_to_string(folder.join(name)).ok();
    let mut names = HashSet::new();
    let index = TensorCache::FILE_NAMES.iter().find_map(|name| TensorCache::parse(name, &read(name)?).ok());
    if let Some(index) = index {
        names.extend(index.shards.into_iter().map(|shard| shard.data_path));
        names.extend(
            LAYOUT.markers.iter().filter(|name| **name != ChatConfig::FILE_NAME).map(|name| (*name).to_owned()),
        );
    }
    if let Some(config) = read(ChatConfig::FILE_NAME).and_then(|text| ChatConfig::parse(&text).ok()) {
        names.extend(config.tokenizer_files);
        names.extend([ChatConfig::FILE_NAME, CHAT_TEMPLATE].map(str::to_owned));
    }
    names
}

fn is_named_like_ours(name: &str) -> bool {
    LAYOUT.markers.contains(&name) || is_shard(name) || TOKENIZER_FILES.contains(&name) || name == CHAT_TEMPLATE
}

/// The parts that a conversion writes.
#[derive(Clone, Copy)]
pub(crate) struct Written {
    pub(crate) weights: bool,
    pub(crate) config: bool,
}

/// Renames all files to their final names. If this conversion has shards, removes shards of an earlier one that it did not replace.
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
