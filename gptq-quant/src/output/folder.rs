//! The output folder: its allowed content before a run, and the files of an older checkpoint that a run replaces.

use std::{fs, path::Path};

use model_format::{
    checkpoint::COMPANIONS,
    gptq::GptqConfig,
    staging::{Layout, Staging},
};
use serde_json::Value;

use crate::error::{Error, Result};

/// The report's files: JSON, and a page for people.
pub const REPORT_FILES: [&str; 2] = ["quantize_report.json", "quantize_report.html"];

/// The weights' file.
pub(crate) const WEIGHTS: &str = "model.safetensors";

/// config.json is written last: a folder without it is incomplete.
pub(crate) const LAYOUT: Layout = Layout { program: "gptq-quant", markers: &["quantize_config.json", "config.json"] };

/// The name of this program in config.json.
pub(crate) const QUANTIZER: &str = concat!("gptq-quant:", env!("CARGO_PKG_VERSION"));

/// Opens `folder` for writing. It must be absent, empty, or hold only an output whose config.json names this program. With
/// `overwrite`, also replaces a GPTQ checkpoint of another program. Errors: [`Error::OutputExists`] for an unquantized model, which
/// may be the source of the run.
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
    // Shards are of another program: this one writes a single file.
    let replaceable = |name: &str| is_named_like_ours(name) && (overwrite || (is_ours && !is_shard(name)));
    staging.check_folder(is_named_like_ours, replaceable)?;
    Ok(staging)
}

/// True for the file names of a GPTQ checkpoint.
fn is_named_like_ours(name: &str) -> bool {
    is_replaced(name) || COMPANIONS.contains(&name) || REPORT_FILES.contains(&name)
}

/// True for files of an older checkpoint that a reader would load instead of the new ones or in addition.
pub(crate) fn is_replaced(name: &str) -> bool {
    LAYOUT.markers.contains(&name) || name == WEIGHTS || is_shard(name)
}

/// True for weight shards and their index.
fn is_shard(name: &str) -> bool {
    let number = name.strip_prefix("model-").and_then(|rest| rest.strip_suffix(".safetensors"));
    name == "model.safetensors.index.json" || number.is_some_and(|rest| rest.contains("-of-"))
}
