//! [`DecoderConfig`]: the shape of a decoder, in the words of config.json.

use serde_json::Value;

use crate::{Architecture, ChatConfig, Error, Result, rope::RopeScaling};

/// The shape of a decoder. Field names are those of config.json.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    /// Which [`Architecture`] this is a shape of.
    pub model_type: String,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward's inner layer.
    pub intermediate_size: usize,
    /// Number of decoder layers.
    pub num_hidden_layers: usize,
    /// Number of query heads.
    pub num_attention_heads: usize,
    /// Number of key and value heads; each serves `num_attention_heads / num_key_value_heads` query heads.
    pub num_key_value_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// Added to the mean square before its root.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Change of the rotary frequencies for long contexts.
    pub rope_scaling: Option<RopeScaling>,
    /// Whether the head is the embedding table.
    pub tie_word_embeddings: bool,
    /// Longest context the model was trained for.
    pub max_position_embeddings: usize,
}

impl DecoderConfig {
    /// Reads the text of a Hugging Face config.json.
    pub fn from_hf(json: &str) -> Result<DecoderConfig> {
        let config = ConfigJson::parse("config.json", json)?;
        let arch = Architecture::by_model_type(config.str("model_type")?)?;
        (arch.decoder_config)(&config)?.checked(&config)
    }

    /// Reads the `model_config` of an mlc-chat-config.json.
    pub fn from_mlc(chat_config: &ChatConfig) -> Result<DecoderConfig> {
        let arch = Architecture::by_model_type(&chat_config.model_type)?;
        let mut value = Value::Object(chat_config.model_config.clone());
        let fields = value.as_object_mut().expect("just made");
        fields.insert("model_type".into(), chat_config.model_type.clone().into());
        // MLC's words for the same two facts.
        for (mlc, hf) in [("position_embedding_base", "rope_theta"), ("context_window_size", "max_position_embeddings")]
        {
            if let (Some(v), None) = (fields.get(mlc).cloned(), fields.get(hf)) {
                fields.insert(hf.into(), v);
            }
        }
        let config = ConfigJson { file: "mlc-chat-config.json".into(), value };
        (arch.decoder_config)(&config)?.checked(&config)
    }

    /// The record of this decoder's family.
    pub fn architecture(&self) -> &'static Architecture {
        Architecture::by_model_type(&self.model_type).expect("a DecoderConfig is only made for a known architecture")
    }

    /// Query heads per key and value head.
    pub fn group_heads(&self) -> usize {
        self.num_attention_heads / self.num_key_value_heads
    }

    /// Outputs of the joined attention input projection: `q | k | v`.
    pub fn qkv_size(&self) -> usize {
        (self.num_attention_heads + 2 * self.num_key_value_heads) * self.head_dim
    }

    /// Config of the Llama family and of those that kept its field names.
    pub fn from_llama_like(config: &ConfigJson) -> Result<DecoderConfig> {
        let hidden_size = config.usize("hidden_size")?;
        let num_attention_heads = config.usize("num_attention_heads")?;
        // transformers 5 moved the rotary fields into `rope_parameters`.
        let rope = config.value.get("rope_parameters").filter(|v| v.is_object());
        let rope_theta = match rope.and_then(|r| r.get("rope_theta")) {
            Some(theta) => config.to_f64("rope_parameters.rope_theta", theta)?,
            None => config.f64_or("rope_theta", 10000.0)?,
        };
        let scaling = rope.or_else(|| config.value.get("rope_scaling").filter(|v| !v.is_null()));
        Ok(DecoderConfig {
            model_type: config.str("model_type")?.into(),
            hidden_size,
            intermediate_size: config.usize("intermediate_size")?,
            num_hidden_layers: config.usize("num_hidden_layers")?,
            num_attention_heads,
            num_key_value_heads: config.usize_or("num_key_value_heads", num_attention_heads)?,
            head_dim: config.usize_or("head_dim", hidden_size.checked_div(num_attention_heads).unwrap_or(0))?,
            vocab_size: config.usize("vocab_size")?,
            rms_norm_eps: config.f64("rms_norm_eps")?,
            rope_theta,
            rope_scaling: scaling.map(|s| RopeScaling::from_json(config, s)).transpose()?.flatten(),
            tie_word_embeddings: config.bool_or("tie_word_embeddings", false)?,
            max_position_embeddings: config.usize_or("max_position_embeddings", 2048)?,
        })
    }

    /// Refuses shapes that no decoder can have, so that nothing after this divides by zero or overflows.
    fn checked(self, config: &ConfigJson) -> Result<DecoderConfig> {
        let bad = |field: &str, expected: &str, found: usize| Error::BadField {
            file: config.file.clone(),
            field: field.into(),
            expected: expected.into(),
            found: found.to_string(),
        };
        for (field, value) in [
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("head_dim", self.head_dim),
            ("vocab_size", self.vocab_size),
            ("max_position_embeddings", self.max_position_embeddings),
        ] {
            if value == 0 || value > 1 << 24 {
                return Err(bad(field, "between 1 and 16777216", value));
            }
        }
        if self.num_hidden_layers > 1 << 12 {
            return Err(bad("num_hidden_layers", "at most 4096", self.num_hidden_layers));
        }
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            return Err(bad("num_key_value_heads", "a divisor of `num_attention_heads`", self.num_key_value_heads));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(bad("head_dim", "even", self.head_dim));
        }
        for (field, value) in [("rms_norm_eps", self.rms_norm_eps), ("rope_theta", self.rope_theta)] {
            if !value.is_finite() || value <= 0.0 {
                return Err(Error::BadField {
                    file: config.file.clone(),
                    field: field.into(),
                    expected: "a positive number".into(),
                    found: value.to_string(),
                });
            }
        }
        Ok(self)
    }
}

/// A parsed configuration that names itself in errors.
#[derive(Debug, Clone)]
pub struct ConfigJson {
    /// Which file this is.
    pub file: String,
    /// Its content.
    pub value: Value,
}

impl ConfigJson {
    /// Parses `json`, which must be an object.
    pub fn parse(file: &str, json: &str) -> Result<ConfigJson> {
        let malformed = |reason: String| Error::Malformed { file: file.into(), reason };
        let value: Value = serde_json::from_str(json).map_err(|e| malformed(e.to_string()))?;
        if !value.is_object() {
            return Err(malformed("not a JSON object".into()));
        }
        Ok(ConfigJson { file: file.into(), value })
    }

    fn field(&self, name: &str) -> Result<&Value> {
        self.value
            .get(name)
            .filter(|v| !v.is_null())
            .ok_or_else(|| Error::MissingField { file: self.file.clone(), field: name.into() })
    }

    fn bad(&self, name: &str, expected: &str, found: &Value) -> Error {
        Error::BadField {
            file: self.file.clone(),
            field: name.into(),
            expected: expected.into(),
            found: found.to_string(),
        }
    }

    /// A required string.
    pub fn str(&self, name: &str) -> Result<&str> {
        let value = self.field(name)?;
        value.as_str().ok_or_else(|| self.bad(name, "a string", value))
    }

    /// A required non-negative integer.
    pub fn usize(&self, name: &str) -> Result<usize> {
        let value = self.field(name)?;
        value
            .as_u64()
            .and_then(|v| usize::try_from(v).ok())
            .ok_or_else(|| self.bad(name, "a non-negative integer", value))
    }

    /// A non-negative integer, or `default` where the field is absent or null.
    pub fn usize_or(&self, name: &str, default: usize) -> Result<usize> {
        if self.value.get(name).is_none_or(Value::is_null) { Ok(default) } else { self.usize(name) }
    }

    /// A required number.
    pub fn f64(&self, name: &str) -> Result<f64> {
        self.to_f64(name, self.field(name)?)
    }

    /// A number, or `default` where the field is absent or null.
    pub fn f64_or(&self, name: &str, default: f64) -> Result<f64> {
        if self.value.get(name).is_none_or(Value::is_null) { Ok(default) } else { self.f64(name) }
    }

    /// `value` as a number; `name` is for the error.
    pub fn to_f64(&self, name: &str, value: &Value) -> Result<f64> {
        value.as_f64().ok_or_else(|| self.bad(name, "a number", value))
    }

    /// A boolean, or `default` where the field is absent or null.
    pub fn bool_or(&self, name: &str, default: bool) -> Result<bool> {
        match self.value.get(name) {
            None | Some(Value::Null) => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| self.bad(name, "true or false", value)),
        }
    }
}
