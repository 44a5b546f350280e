//! [`ModelConfig`]: `model_config` of mlc-chat-config.json, filled in by an architecture's record.

use model_format::{
    DecoderConfig, Error as FormatError,
    arch::{Architecture, Context, Field},
    config_json::ConfigJson,
    rope_scaling::RopeScaling,
};
use serde_json::{Map, Value, json};

use crate::Result;

/// Options of `gen_config`. The defaults are mlc_llm's.
#[derive(Debug, Clone)]
pub struct ConfigOptions {
    /// Name of the conversation template; `None` infers it from the checkpoint.
    pub conv_template: Option<String>,
    /// Replaces the model's value.
    pub context_window_size: Option<u64>,
    /// Replaces the model's value, for architectures with a sliding window.
    pub sliding_window_size: Option<i64>,
    /// Replaces the smaller of the context and 8192.
    pub prefill_chunk_size: Option<u64>,
    /// Replaces the architecture's value, for architectures with attention sinks.
    pub attention_sink_size: Option<i64>,
    /// GPUs that share each layer.
    pub tensor_parallel_shards: Option<u64>,
    /// GPUs that share the layers.
    pub pipeline_parallel_stages: Option<u64>,
    /// MLC's disaggregated serving.
    pub disaggregation: Option<bool>,
    /// Sequences in a batch.
    pub max_batch_size: u64,
    /// Write MLC's bytes even if they are wrong for the model: MLC does not know `rope_parameters` of transformers 5, drops a
    /// `rope_scaling` of unknown form, and accepts any conversation template.
    pub mlc_compat: bool,
    /// Replace files named like those of an MLC folder, regardless of the program that wrote them.
    pub overwrite: bool,
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
            overwrite: false,
        }
    }
}

/// Builds `model_config`, the part of the configuration that depends on the architecture.
pub(crate) struct ModelConfig<'a> {
    config: &'a ConfigJson,
    decoder: &'a DecoderConfig,
    arch: &'static Architecture,
    options: &'a ConfigOptions,
    /// Sizes from config.json alone, and with the flags applied.
    own: Sizes,
    sizes: Sizes,
}

/// The sizes that flags change, in tokens; -1 is none.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    context: i64,
    prefill: i64,
    sliding: i64,
}

impl<'a> ModelConfig<'a> {
    pub(crate) fn new(
        config: &'a ConfigJson,
        decoder: &'a DecoderConfig,
        options: &'a ConfigOptions,
    ) -> Result<ModelConfig<'a>> {
        let arch = decoder.architecture();
        let none = Sizes { context: -1, prefill: -1, sliding: -1 };
        let mut model = ModelConfig { config, decoder, arch, options, own: none, sizes: none };
        model.own = model.own_sizes()?;
        model.sizes = model.requested_sizes();
        Ok(model)
    }

    pub(crate) fn build(&self) -> Result<Map<String, Value>> {
        let mlc = &self.arch.mlc_config;
        let mut fields = Map::new();
        if let Some(inner) = mlc.text_config {
            fields.insert("text_config".into(), Value::Object(self.text_config(inner)?));
        }
        for field in mlc.fields {
            fields.insert(field.name.into(), self.field(field, &self.sizes)?);
        }
        Ok(fields)
    }

    /// The inner configuration: its fields, and in `kwargs` all that MLC has no field for.
    fn text_config(&self, inner: &[Field]) -> Result<Map<String, Value>> {
        let mut fields = Map::new();
        for field in inner {
            fields.insert(field.name.into(), self.field(field, &self.own)?);
        }
        let mut rest = self.config.value.as_object().expect("a ConfigJson is an object").clone();
        for field in inner.iter().chain(self.arch.mlc_config.fields) {
            rest.shift_remove(field.name);
        }
        // MLC stores it as `position_embedding_base`.
        rest.shift_remove("rope_theta");
        fields.insert("kwargs".into(), Value::Object(rest));
        Ok(fields)
    }

    fn given(&self, name: &str) -> Option<Value> {
        self.config.value.get(name).filter(|v| !v.is_null()).cloned()
    }

    fn missing(&self, name: &str) -> crate::Error {
        FormatError::MissingField { file: self.config.file.clone(), field: name.into() }.into()
    }

    /// The value of a field. Numbers from config.json keep their notation.
    fn field(&self, field: &Field, sizes: &Sizes) -> Result<Value> {
        let (name, options) = (field.name, self.options);
        let default = || field.default.map(|json| serde_json::from_str(json).expect("the record's defaults are JSON"));
        Ok(match name {
            "position_embedding_base" => self.rope_base().unwrap_or(self.default_rope_base()),
            "rope_theta" => self.rope_base().ok_or_else(|| self.missing(name))?,
            "rope_scaling" => match self.config.value.get("rope_scaling") {
                None if default().is_some() && self.rope_parameters().is_none() => default().unwrap_or_default(),
                _ => self.rope_scaling()?,
            },
            "context_window_size" => json!(sizes.context),
            "prefill_chunk_size" => json!(sizes.prefill),
            "sliding_window_size" => json!(sizes.sliding),
            "attention_sink_size" => match options.attention_sink_size {
                Some(size) => json!(size),
                None => self.given(name).or_else(default).ok_or_else(|| self.missing(name))?,
            },
            "num_key_value_heads" => json!(self.decoder.num_key_value_heads),
            "head_dim" => json!(self.decoder.head_dim),
            // Older configurations call it `hidden_act`.
            "hidden_activation" => {
                let found = self.given(name).or_else(|| self.given("hidden_act")).or_else(default);
                found.ok_or_else(|| self.missing(name))?
            }
            "tensor_parallel_shards" => self.parallel(name, options.tensor_parallel_shards, u64::MAX)?,
            "pipeline_parallel_stages" => {
                self.parallel(name, options.pipeline_parallel_stages, self.decoder.num_hidden_layers as u64)?
            }
            "max_batch_size" => json!(options.max_batch_size),
            "disaggregation" => match options.disaggregation {
                Some(on) => json!(on),
                None => default().unwrap_or_default(),
            },
            _ => self.given(name).or_else(default).ok_or_else(|| self.missing(name))?,
        })
    }

    /// `rope_parameters` of transformers 5; MLC does not read it.
    fn rope_parameters(&self) -> Option<&Value> {
        self.config.rope_parameters("full_attention").filter(|_| !self.options.mlc_compat)
    }

    fn rope_base(&self) -> Option<Value> {
        let in_parameters = self.rope_parameters().and_then(|rope| rope.get("rope_theta")).cloned();
        self.given("position_embedding_base").or(in_parameters).or_else(|| self.given("rope_theta"))
    }

    /// MLC's default, which differs for inner configurations.
    fn default_rope_base(&self) -> Value {
        if self.arch.mlc_config.text_config.is_some() { json!(1_000_000) } else { json!(10000) }
    }

    fn rope_scaling(&self) -> Result<Value> {
        let given = self.rope_parameters().or_else(|| self.config.value.get("rope_scaling"));
        let Some(Value::Object(scaling)) = given else { return Ok(Value::Null) };
        let mut scaling = scaling.clone();
        if let Some(RopeScaling::LongRope { original_max_position_embeddings, .. }) = &self.decoder.rope_scaling {
            // MLC reads only the older key `type`, and writes both keys.
            let Some(kind) = scaling.get("type").or(scaling.get("rope_type").filter(|_| !self.options.mlc_compat))
            else {
                return Ok(Value::Null);
            };
            let kind = if kind == "su" { json!("longrope") } else { kind.clone() };
            scaling.shift_remove("rope_theta");
            scaling.insert("type".into(), kind.clone());
            scaling.insert("rope_type".into(), kind);
            let original = match self.options.mlc_compat {
                true => self.given("original_max_position_embeddings").unwrap_or(json!(0)),
                false => json!(original_max_position_embeddings),
            };
            scaling.insert("max_position_embeddings".into(), json!(self.decoder.max_position_embeddings));
            scaling.insert("original_max_position_embeddings".into(), original);
            return Ok(Value::Object(scaling));
        }
        if self.options.mlc_compat {
            return match scaling.get("rope_type") {
                None => Ok(Value::Null),
                Some(kind) if kind == "llama3" => Ok(Value::Object(scaling)),
                Some(other) => Err(FormatError::BadField {
                    file: self.config.file.clone(),
                    field: "rope_scaling.rope_type".into(),
                    expected: "`llama3`, the only type that MLC knows".into(),
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
            // The older key.
            let kind = scaling.shift_remove("type").unwrap_or(Value::Null);
            scaling.insert("rope_type".into(), kind);
        }
        Ok(Value::Object(scaling))
    }

    /// The context length of the model, under any of the names that MLC knows.
    fn positions(&self) -> Result<i64> {
        for name in ["context_window_size", "max_position_embeddings", "max_sequence_length"] {
            if let size @ 1.. = self.config.usize_or(name, 0)? {
                return Ok(size as i64);
            }
        }
        Err(self.missing("max_position_embeddings"))
    }

    /// The smaller of the context and the architecture's limit of a prefill chunk.
    fn limited(&self, context: i64) -> i64 {
        context.min(self.arch.mlc_config.prefill_limit as i64)
    }

    /// The chunk if it fits in the context, else MLC's default.
    fn fitting(&self, chunk: i64, context: i64) -> i64 {
        if chunk == 0 || chunk > context { self.limited(context) } else { chunk }
    }

    /// Sizes from config.json alone.
    fn own_sizes(&self) -> Result<Sizes> {
        let chunk = self.config.usize_or("prefill_chunk_size", 0)? as i64;
        let window = match self.given("sliding_window_size").or_else(|| self.given("sliding_window")) {
            None => -1,
            Some(window) => window.as_i64().ok_or_else(|| self.missing("sliding_window"))?,
        };
        Ok(match self.arch.mlc_config.context {
            Context::Positions => {
                let context = self.positions()?;
                Sizes { context, prefill: self.fitting(chunk, context), sliding: -1 }
            }
            Context::Rolling => {
                let given = self.config.opt_usize("context_window_size")?.filter(|&size| size > 0);
                let context = match given {
                    Some(context) => context as i64,
                    None if window == -1 => self.positions()?,
                    None => -1,
                };
                let smallest = [window, context].into_iter().filter(|&size| size != -1).min().unwrap_or(-1);
                let prefill = if chunk == 0 { self.limited(smallest) } else { chunk };
                Sizes { context, prefill, sliding: window }
            }
            Context::Window => {
                let window = self.config.usize("sliding_window")? as i64;
                Sizes { context: window, prefill: self.fitting(chunk, self.positions()?), sliding: -1 }
            }
            Context::AtLeast(least) => {
                let own = self.config.usize_or("context_window_size", 131_072)? as i64;
                let context = window.max(least as i64);
                Sizes { context, prefill: self.fitting(self.fitting(chunk, own), context), sliding: window }
            }
        })
    }

    /// Sizes with the flags applied. MLC then evaluates its own fields again.
    fn requested_sizes(&self) -> Sizes {
        let (own, options) = (self.own, self.options);
        let context = options.context_window_size.map_or(own.context, |size| size as i64);
        let prefill = options.prefill_chunk_size.map_or(own.prefill, |size| size as i64);
        let sliding = options.sliding_window_size.unwrap_or(own.sliding);
        match self.arch.mlc_config.context {
            Context::Positions => Sizes { context, prefill: self.fitting(prefill, context), ..own },
            Context::Window => Sizes { prefill: self.fitting(prefill, context), ..own },
            Context::Rolling => Sizes { context, prefill, sliding: if sliding == 0 { -1 } else { sliding } },
            Context::AtLeast(_) => Sizes { context, prefill, sliding },
        }
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
