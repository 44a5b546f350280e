//! [`gen_config`]: mlc-chat-config.json and the tokenizer's files.

use std::path::Path;

use model_format::{
    Architecture, ChatConfig, Checkpoint, ConvTemplate, DecoderConfig, Error as FormatError, QuantFormat,
    checkpoint::companion_files, conv_template::infer, decoder_config::ConfigJson,
};
use serde_json::{Map, Value, json};

use crate::{
    Result,
    python_json::to_python_json,
    staging::Staging,
    tokenizer_info::{TOKENIZER_FILES, active_vocab_size, check_added_tokens, tokenizer_info},
};

/// The files that a configuration is made from.
#[derive(Debug, Clone)]
pub struct ConfigSource {
    /// What to call their place in messages.
    pub location: String,
    /// The text of config.json.
    pub config_json: String,
    /// The files beside it: name and content.
    pub files: Vec<(String, Vec<u8>)>,
}

impl ConfigSource {
    /// Those of a checkpoint.
    pub fn of(checkpoint: &dyn Checkpoint) -> Result<ConfigSource> {
        Ok(ConfigSource {
            location: checkpoint.location(),
            config_json: checkpoint.config_json().into(),
            files: checkpoint.companion_files()?,
        })
    }

    /// Those of a folder, which need not hold weights.
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

/// What `gen_config` may be told. The defaults are mlc_llm's.
#[derive(Debug, Clone)]
pub struct ConfigOptions {
    /// Name of the conversation template; told from the checkpoint when `None`.
    pub conv_template: Option<String>,
    /// Instead of the model's own.
    pub context_window_size: Option<u64>,
    /// Instead of the model's own, for architectures that have one.
    pub sliding_window_size: Option<i64>,
    /// Instead of the smaller of the context and 8192.
    pub prefill_chunk_size: Option<u64>,
    /// Instead of the architecture's own, for those that have one.
    pub attention_sink_size: Option<i64>,
    /// GPUs that share each layer.
    pub tensor_parallel_shards: Option<u64>,
    /// GPUs that share the layers.
    pub pipeline_parallel_stages: Option<u64>,
    /// MLC's disaggregated serving.
    pub disaggregation: Option<bool>,
    /// Sequences at a time.
    pub max_batch_size: u64,
    /// Write MLC's bytes also where they are wrong for the model: it does not know transformers 5's `rope_parameters`, and
    /// drops a `rope_scaling` without `rope_type`.
    pub mlc_compat: bool,
}

impl Default for ConfigOptions {
    fn default() -> ConfigOptions {
        ConfigOptions {
            conv_template: None,
            context_window_size: None,
            sliding_window_size: None,
            prefill_chunk_size: None,
            attention_sink_size: None,
            tensor_parallel_shards: None,
            pipeline_parallel_stages: None,
            disaggregation: None,
            max_batch_size: 128,
            mlc_compat: false,
        }
    }
}

/// What was written.
#[derive(Debug, Clone)]
pub struct ConfigReport {
    /// The conversation template.
    pub conv_template: &'static str,
    /// Whether it was told from the checkpoint.
    pub inferred: bool,
    /// The tokenizer's files, as listed in the configuration.
    pub tokenizer_files: Vec<&'static str>,
    /// What the user may want to know.
    pub notes: Vec<String>,
}

/// Writes mlc-chat-config.json and the tokenizer's files to `out`.
pub fn gen_config(
    source: &ConfigSource,
    format: &QuantFormat,
    options: &ConfigOptions,
    out: &Path,
) -> Result<ConfigReport> {
    let config = build(source, format, options)?;
    let mut staging = Staging::new(out)?;
    config.stage(source, &mut staging)?;
    staging.commit()?;
    Ok(config.report)
}

/// A configuration that is ready to be written.
pub(crate) struct Built {
    text: String,
    pub(crate) report: ConfigReport,
}

impl Built {
    pub(crate) fn stage(&self, source: &ConfigSource, staging: &mut Staging) -> Result<()> {
        // The Jinja template is not MLC's, but our engine prefers it.
        for &name in self.report.tokenizer_files.iter().chain(&["chat_template.jinja"]) {
            if let Some(content) = source.file(name) {
                staging.write(name, content)?;
            }
        }
        staging.write(ChatConfig::FILE_NAME, self.text.as_bytes())
    }
}

/// Everything that can be wrong is found here, before anything is written.
pub(crate) fn build(source: &ConfigSource, format: &QuantFormat, options: &ConfigOptions) -> Result<Built> {
    let decoder = DecoderConfig::from_hf(&source.config_json)?;
    let config = ConfigJson::parse("config.json", &source.config_json)?;
    let template = match &options.conv_template {
        Some(name) => ConvTemplate::by_name(name)?,
        None => infer(&source.files)?,
    };
    let arch = decoder.architecture();
    let tokenizer = source
        .json("tokenizer.json")?
        .ok_or_else(|| FormatError::MissingFile { file: "tokenizer.json".into(), folder: source.location.clone() })?;
    check_added_tokens(&tokenizer)?;
    let tokenizer_config = source.json("tokenizer_config.json")?;

    let model_config = ModelConfig { config: &config, decoder: &decoder, options }.build(arch)?;
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
        ("sliding_window_size", options.sliding_window_size.is_some()),
        ("attention_sink_size", options.attention_sink_size.is_some()),
    ] {
        if given && !arch.model_config.contains(&name) {
            notes.push(format!("`{name}` has no effect: a `{}` model has none", decoder.model_type));
        }
    }
    let report = ConfigReport {
        conv_template: &template.name,
        inferred: options.conv_template.is_none(),
        tokenizer_files,
        notes,
    };
    Ok(Built { text: to_python_json(&value, 2), report })
}

/// The architecture's own part of the configuration.
struct ModelConfig<'a> {
    config: &'a ConfigJson,
    decoder: &'a DecoderConfig,
    options: &'a ConfigOptions,
}

impl ModelConfig<'_> {
    fn build(&self, arch: &Architecture) -> Result<Map<String, Value>> {
        arch.model_config.iter().map(|&name| Ok((name.to_owned(), self.field(name)?))).collect()
    }

    /// A field's value. Numbers that config.json gives are passed on as they are written there.
    fn field(&self, name: &str) -> Result<Value> {
        let given = |name: &str| self.config.value.get(name).filter(|v| !v.is_null()).cloned();
        let options = self.options;
        Ok(match name {
            "tie_word_embeddings" => given(name).unwrap_or(json!(false)),
            "position_embedding_base" => self.rope_base(),
            "rope_scaling" => self.rope_scaling()?,
            "context_window_size" => json!(self.context_window_size()?),
            "prefill_chunk_size" => json!(self.prefill_chunk_size()?),
            "num_key_value_heads" => json!(self.decoder.num_key_value_heads),
            "head_dim" => json!(self.decoder.head_dim),
            "tensor_parallel_shards" => self.parallel(name, options.tensor_parallel_shards, u64::MAX)?,
            "pipeline_parallel_stages" => {
                self.parallel(name, options.pipeline_parallel_stages, self.decoder.num_hidden_layers as u64)?
            }
            "max_batch_size" => json!(options.max_batch_size),
            "disaggregation" => json!(options.disaggregation.unwrap_or(false)),
            _ => given(name)
                .ok_or_else(|| FormatError::MissingField { file: self.config.file.clone(), field: name.into() })?,
        })
    }

    /// transformers 5's `rope_parameters`, where it is to be looked at.
    fn rope_parameters(&self) -> Option<&Value> {
        self.config.value.get("rope_parameters").filter(|v| v.is_object() && !self.options.mlc_compat)
    }

    fn rope_base(&self) -> Value {
        let in_parameters = self.rope_parameters().and_then(|rope| rope.get("rope_theta"));
        let fields =
            [self.config.value.get("position_embedding_base"), in_parameters, self.config.value.get("rope_theta")];
        fields.into_iter().flatten().find(|v| !v.is_null()).cloned().unwrap_or(json!(10000))
    }

    fn rope_scaling(&self) -> Result<Value> {
        let given = self.rope_parameters().or_else(|| self.config.value.get("rope_scaling"));
        let Some(Value::Object(scaling)) = given else { return Ok(Value::Null) };
        let mut scaling = scaling.clone();
        if self.options.mlc_compat {
            return match scaling.get("rope_type") {
                None => Ok(Value::Null),
                Some(kind) if kind == "llama3" => Ok(Value::Object(scaling)),
                Some(other) => Err(FormatError::BadField {
                    file: self.config.file.clone(),
                    field: "rope_scaling.rope_type".into(),
                    expected: "`llama3`, the only one that MLC knows".into(),
                    found: other.to_string(),
                }
                .into()),
            };
        }
        if self.decoder.rope_scaling.is_none() {
            return Ok(Value::Null);
        }
        scaling.shift_remove("rope_theta");
        if !scaling.contains_key("rope_type") {
            // The older word for it.
            let kind = scaling.shift_remove("type").unwrap_or(Value::Null);
            scaling.insert("rope_type".into(), kind);
        }
        Ok(Value::Object(scaling))
    }

    /// The context of the model itself.
    fn own_context(&self) -> Result<u64> {
        for name in ["context_window_size", "max_position_embeddings", "max_sequence_length"] {
            if let size @ 1.. = self.config.usize_or(name, 0)? {
                return Ok(size as u64);
            }
        }
        Err(FormatError::MissingField { file: self.config.file.clone(), field: "max_position_embeddings".into() }
            .into())
    }

    fn context_window_size(&self) -> Result<u64> {
        match self.options.context_window_size {
            Some(size) => Ok(size),
            None => self.own_context(),
        }
    }

    fn prefill_chunk_size(&self) -> Result<u64> {
        let limited = |context: u64| context.min(8192);
        let fitting = |chunk: u64, context| if chunk == 0 || chunk > context { limited(context) } else { chunk };
        let own_context = self.own_context()?;
        let own = fitting(self.config.usize_or("prefill_chunk_size", 0)? as u64, own_context);
        Ok(fitting(self.options.prefill_chunk_size.unwrap_or(own), self.context_window_size()?))
    }

    fn parallel(&self, name: &str, option: Option<u64>, limit: u64) -> Result<Value> {
        let value = match option {
            Some(value) => value,
            None => self.config.usize_or(name, 1)? as u64,
        };
        if value == 0 || value > limit {
            return Err(FormatError::BadField {
                file: self.config.file.clone(),
                field: name.into(),
                expected: "at least 1, and no more stages than layers".into(),
                found: value.to_string(),
            }
            .into());
        }
        Ok(json!(value))
    }
}
