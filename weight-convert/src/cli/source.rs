//! Opens the checkpoints that the flags name.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use command_line::{Bars, hub_config};
use model_format::{Checkpoint, HostTensor, TensorInfo, gptq::GptqConfig};
use serde_json::{Map, Value};

use super::args::{ConvertWeightArgs, SourceFormat};

/// Opens a checkpoint; downloads it first if necessary.
pub fn open(source: &str, bars: &mut Bars) -> Result<Box<dyn Checkpoint>> {
    Ok(model_hub::open(source, &hub_config()?, bars)?.into_checkpoint()?)
}

/// The model's folder if `config` is a folder or the path of its config.json.
pub fn config_folder(config: &str) -> Option<PathBuf> {
    let path = Path::new(config);
    if path.join("config.json").is_file() {
        return Some(path.into());
    }
    let folder = path.parent().filter(|_| path.is_file() && path.ends_with("config.json"))?;
    Some(if folder.as_os_str().is_empty() { ".".into() } else { folder.into() })
}

/// The input of `convert_weight`: the weights of `--source` with the configuration of CONFIG.
pub fn open_weights(args: &ConvertWeightArgs, bars: &mut Bars) -> Result<Box<dyn Checkpoint>> {
    let model = match config_folder(&args.config) {
        Some(folder) => folder.display().to_string(),
        None => args.config.clone(),
    };
    let (weights, config_json) = match args.source.as_str() {
        "auto" => {
            let weights = open(&model, bars)?;
            let config_json = weights.config_json().to_owned();
            (weights, config_json)
        }
        source => {
            let config_json = match config_folder(&args.config) {
                Some(folder) => weight_convert::ConfigSource::folder(&folder)?.config_json,
                None => open(&model, bars)?.config_json().to_owned(),
            };
            // Like mlc_llm, accept the weights' index file in place of their folder.
            let path = Path::new(source);
            let folder = path.parent().filter(|_| path.is_file() && path.extension().is_some_and(|end| end == "json"));
            let source = folder.map_or_else(|| source.to_owned(), |folder| folder.display().to_string());
            (open(&source, bars)?, config_json)
        }
    };
    let config_json = with_model_type(config_json, &args.model_type)?;
    match args.source_format {
        SourceFormat::Auto | SourceFormat::HuggingfaceSafetensor => {}
        SourceFormat::HuggingfaceGptq => {
            if GptqConfig::from_config(&config_json)?.is_none() {
                bail!("`{}` is not a GPTQ checkpoint: `config.json` has no `quantization_config`", weights.location());
            }
        }
        SourceFormat::HuggingfaceTorch => bail!("PyTorch files are not read: convert them to safetensors first"),
        SourceFormat::Awq => bail!("AWQ checkpoints are not read"),
    }
    Ok(Box::new(WithConfig { weights, config_json }))
}

/// config.json with the `model_type` of the flag; `auto` changes nothing.
pub fn with_model_type(config_json: String, model_type: &str) -> Result<String> {
    if model_type == "auto" {
        return Ok(config_json);
    }
    let mut config: Map<String, Value> =
        serde_json::from_str(&config_json).context("`config.json` is not a JSON object")?;
    config.insert("model_type".into(), model_type.into());
    Ok(Value::Object(config).to_string())
}

/// A checkpoint with another configuration.
struct WithConfig {
    weights: Box<dyn Checkpoint>,
    config_json: String,
}

impl Checkpoint for WithConfig {
    fn tensors(&self) -> &[TensorInfo] {
        self.weights.tensors()
    }

    fn tensor(&self, name: &str) -> model_format::Result<HostTensor<'_>> {
        self.weights.tensor(name)
    }

    fn location(&self) -> String {
        self.weights.location()
    }

    fn config_json(&self) -> &str {
        &self.config_json
    }

    fn companion_files(&self) -> model_format::Result<Vec<(String, Vec<u8>)>> {
        self.weights.companion_files()
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.weights.info(name)
    }

    fn release(&self, name: &str) {
        self.weights.release(name);
    }
}
