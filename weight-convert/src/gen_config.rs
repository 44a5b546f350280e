//! [`gen_config`]: writes mlc-chat-config.json and the tokenizer's files.

use std::path::Path;

use model_format::{
    ChatConfig, Checkpoint, ConvTemplate, DecoderConfig, Error as FormatError, PythonJson, QuantFormat,
    arch::Context,
    checkpoint::companion_files,
    config_json::ConfigJson,
    conv_template::{check_fits, infer},
    staging::Staging,
};
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    Result,
    model_config::{ConfigOptions, ModelConfig},
    output::{CHAT_TEMPLATE, FileReport, Written, commit, stage},
    tokenizer_info::{TOKENIZER_FILES, active_vocab_size, check_added_tokens, tokenizer_info},
};

/// The input files of a configuration.
#[derive(Debug, Clone)]
pub struct ConfigSource {
    /// Their location, for messages.
    pub location: String,
    /// The text of config.json.
    pub config_json: String,
    /// The other files of the folder: name and content.
    pub files: Vec<(String, Vec<u8>)>,
}

impl ConfigSource {
    /// The files of a checkpoint.
    pub fn of(checkpoint: &dyn Checkpoint) -> Result<ConfigSource> {
        Ok(ConfigSource {
            location: checkpoint.location(),
            config_json: checkpoint.config_json().into(),
            files: checkpoint.companion_files()?,
        })
    }

    /// The files of a folder. It may lack weights.
    pub fn folder(folder: &Path) -> Result<ConfigSource> {
        let files = companion_files(folder)?;
        let location = folder.display().to_string();
        let missing = || FormatError::MissingFile { file: "config.json".into(), folder: location.clone() };
        let config = files.iter().find(|(name, _)| name == "config.json").ok_or_else(missing)?;
        let not_text = |_| FormatError::Malformed { file: "config.json".into(), reason: "not UTF-8 text".into() };
        let config_json = String::from_utf8(config.1.clone()).map_err(not_text)?;
        Ok(ConfigSource { location, config_json, files })
    }

    fn file(&self, name: &str) -> Option<&[u8]> {
        self.files.iter().find(|(file, _)| file == name).map(|(_, content)| content.as_slice())
    }

    fn json(&self, name: &str) -> Result<Option<Value>> {
        let Some(content) = self.file(name) else { return Ok(None) };
        let parsed = serde_json::from_slice(content);
        Ok(Some(parsed.map_err(|e| FormatError::Malformed { file: name.into(), reason: e.to_string() })?))
    }
}

/// The written configuration.
#[derive(Debug, Clone, Serialize)]
pub struct ConfigReport {
    /// The conversation template.
    pub conv_template: &'static str,
    /// True if it was inferred from the checkpoint.
    pub inferred: bool,
    /// The tokenizer's files, as listed in the configuration.
    pub tokenizer_files: Vec<&'static str>,
    /// Notes for the user.
    pub notes: Vec<String>,
    /// The configuration and the copied files.
    pub files: Vec<FileReport>,
}

/// Writes mlc-chat-config.json and the tokenizer's files to `out`.
pub fn gen_config(
    source: &ConfigSource,
    format: &QuantFormat,
    options: &ConfigOptions,
    out: &Path,
) -> Result<ConfigReport> {
    let config = build(source, format, options)?;
    let mut staging = stage(out, options.overwrite)?;
    config.stage(source, &mut staging)?;
    commit(staging, Written { weights: false, config: true })?;
    Ok(config.report)
}

/// A checked configuration.
pub(crate) struct Built {
    text: String,
    pub(crate) report: ConfigReport,
}

impl Built {
    pub(crate) fn stage(&self, source: &ConfigSource, staging: &mut Staging) -> Result<()> {
        for file in &self.report.files {
            if let Some(content) = source.file(&file.name) {
                staging.write(&file.name, content)?;
            }
        }
        Ok(staging.write(ChatConfig::FILE_NAME, self.text.as_bytes())?)
    }
}

/// Builds and checks the configuration. All errors occur here, before the first write.
pub(crate) fn build(source: &ConfigSource, format: &QuantFormat, options: &ConfigOptions) -> Result<Built> {
    let decoder = DecoderConfig::from_hf(&source.config_json)?;
    let config = ConfigJson::parse("config.json", &source.config_json)?;
    let template = match &options.conv_template {
        Some(name) => ConvTemplate::by_name(name)?,
        None => infer(&source.files)?,
    };
    if !options.mlc_compat {
        check_fits(template, &source.files)?;
    }
    let arch = decoder.architecture();
    let tokenizer = source
        .json("tokenizer.json")?
        .ok_or_else(|| FormatError::MissingFile { file: "tokenizer.json".into(), folder: source.location.clone() })?;
    check_added_tokens(&tokenizer)?;
    let tokenizer_config = source.json("tokenizer_config.json")?;

    let model_config = ModelConfig::new(&config, &decoder, options)?.build()?;
    let of_model = |name: &str, default: Value| model_config.get(name).cloned().unwrap_or(default);
    let tokenizer_files: Vec<&str> = TOKENIZER_FILES.into_iter().filter(|name| source.file(name).is_some()).collect();
    let generation_config = source.json("generation_config.json")?;
    let generation = |name: &str, default: Value| {
        let files = [generation_config.as_ref(), Some(&config.value)];
        files.into_iter().flatten().map(|file| &file[name]).find(|v| !v.is_null()).cloned().unwrap_or(default)
    };
    let value = json!({
        "version": "0.1.0",
        "model_type": decoder.model_type,
        "quantization": format.name,
        "model_config": model_config,
        "vocab_size": of_model("vocab_size", Value::Null),
        "context_window_size": of_model("context_window_size", json!(-1)),
        "sliding_window_size": of_model("sliding_window_size", json!(-1)),
        "prefill_chunk_size": of_model("prefill_chunk_size", Value::Null),
        "attention_sink_size": of_model("attention_sink_size", json!(-1)),
        "tensor_parallel_shards": of_model("tensor_parallel_shards", json!(1)),
        "pipeline_parallel_stages": of_model("pipeline_parallel_stages", json!(1)),
        "active_vocab_size": active_vocab_size(&tokenizer, tokenizer_config.as_ref()),
        "temperature": generation("temperature", json!(1.0)),
        "presence_penalty": generation("presence_penalty", json!(0.0)),
        "frequency_penalty": generation("frequency_penalty", json!(0.0)),
        "repetition_penalty": generation("repetition_penalty", json!(1.0)),
        "top_p": generation("top_p", json!(1.0)),
        "tokenizer_files": tokenizer_files,
        "tokenizer_info": tokenizer_info(&tokenizer),
        "conv_template": template,
        "pad_token_id": generation("pad_token_id", json!(0)),
        "bos_token_id": generation("bos_token_id", json!(1)),
        "eos_token_id": generation("eos_token_id", json!(2)),
        "model_task": "chat",
        "embedding_metadata": null,
    });

    let mut notes = Vec::new();
    for (name, given) in [
        ("context_window_size", options.context_window_size.is_some()),
        ("sliding_window_size", options.sliding_window_size.is_some()),
        ("attention_sink_size", options.attention_sink_size.is_some()),
        ("pipeline_parallel_stages", options.pipeline_parallel_stages.is_some()),
        ("disaggregation", options.disaggregation.is_some()),
    ] {
        let is_fixed = name == "context_window_size" && arch.mlc_config.context == Context::Window;
        if given && (is_fixed || !arch.mlc_config.fields.iter().any(|field| field.name == name)) {
            notes.push(format!("`{name}` has no effect: a `{}` model does not have it", decoder.model_type));
        }
    }
    let text = PythonJson::indented(2).write(&value);
    let copied = tokenizer_files.iter().chain(&[CHAT_TEMPLATE]);
    let mut files: Vec<_> = copied
        .filter_map(|&name| Some(FileReport { name: name.into(), bytes: source.file(name)?.len() as u64 }))
        .collect();
    files.push(FileReport { name: ChatConfig::FILE_NAME.into(), bytes: text.len() as u64 });
    let report = ConfigReport {
        conv_template: &template.name,
        inferred: options.conv_template.is_none(),
        tokenizer_files,
        notes,
        files,
    };
    Ok(Built { text, report })
}
