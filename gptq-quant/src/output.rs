//! The folder of a GPTQ checkpoint: what it may hold before a run, and which files of an older checkpoint are replaced.

use std::{fs, path::Path};

use model_format::{
    checkpoint::COMPANIONS,
    gptq::GptqConfig,
    staging::{Layout, Staging},
};
use serde_json::Value;

use crate::{Error, Result, report::REPORT_FILES};

/// The weights.
pub(crate) const WEIGHTS: &str = "model.safetensors";

/// config.json comes last: a folder without one is not whole.
pub(crate) const LAYOUT: Layout = Layout { program: "gptq-quant", markers: &["quantize_config.json", "config.json"] };

/// What config.json calls the program that made the checkpoint.
pub(crate) const QUANTIZER: &str = concat!("gptq-quant:", env!("CARGO_PKG_VERSION"));

/// Begins to write to `folder`, which must be absent, empty, or hold nothing but what an earlier run wrote: its config.json names
/// this program. With `overwrite`, files that are named like those of a GPTQ checkpoint are replaced too. An unquantized model is
/// refused in any case: it may be the source.
pub(crate) fn stage(folder: &Path, overwrite: bool) -> Result<Staging> {
    let path = folder.join("config.json");
    let config = match fs::read_to_string(&path) {
        Ok(json) if GptqConfig::from_config(&json).is_ok_and(|config| config.is_some()) => json,
        Ok(_) => return Err(Error::OutputExists { folder: folder.into() }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(source) => return Err(model_format::Error::Io { action: "read", path, source }.into()),
    };
    let config: Value = serde_json::from_str(&config).unwrap_or_default();
    let quantizer = config["quantization_config"]["meta"]["quantizer"][0].as_str().unwrap_or_default();
    let is_ours = quantizer.split(':').next() == QUANTIZER.split(':').next();
    let staging = Staging::new(folder, LAYOUT)?;
    // This program writes no shards.
    let replaceable = |name: &str| is_named_like_ours(name) && (overwrite || (is_ours && !is_shard(name)));
    staging.check_folder(is_named_like_ours, replaceable)?;
    Ok(staging)
}

/// Whether a file is named like one of a GPTQ checkpoint.
fn is_named_like_ours(name: &str) -> bool {
    is_replaced(name) || COMPANIONS.contains(&name) || REPORT_FILES.contains(&name)
}

/// Whether a file of an older checkpoint would be read in place of the new one, or beside it.
pub(crate) fn is_replaced(name: &str) -> bool {
    LAYOUT.markers.contains(&name) || name == WEIGHTS || is_shard(name)
}

/// Weights of a checkpoint in several files, and their index.
fn is_shard(name: &str) -> bool {
    let number = name.strip_prefix("model-").and_then(|rest| rest.strip_suffix(".safetensors"));
    name == "model.safetensors.index.json" || number.is_some_and(|rest| rest.contains("-of-"))
}
