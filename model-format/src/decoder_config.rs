//! [`DecoderConfig`]: the shape of a decoder, with the field names of config.json.

use serde_json::{Value, json};

use crate::{Error, Result, config_json::ConfigJson, rope_scaling::RopeScaling};

/// Maximum number of layers.
const MAX_LAYERS: usize = 1 << 12;

/// The shape of a decoder. Field names are those of config.json if it has the field.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    /// The [`Architecture`](crate::Architecture), by its `model_type`.
    pub model_type: String,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward's hidden layer.
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
    /// Added to the mean square before the square root.
    pub rms_norm_eps: f64,
    /// Base of the RoPE frequencies.
    pub rope_theta: f64,
    /// Base of the RoPE frequencies in layers with a sliding window, without scaling. `None`: as in all layers.
    pub window_rope_theta: Option<f64>,
    /// Number of rotated elements in each head. These are the first ones.
    pub rotary_dim: usize,
    /// Scaling of the RoPE frequencies for long contexts.
    pub rope_scaling: Option<RopeScaling>,
    /// True if the output projection is the embedding table.
    pub tie_word_embeddings: bool,
    /// Longest context in training, in tokens.
    pub max_position_embeddings: usize,
    /// True if the query, key and value projections have a bias.
    pub qkv_bias: bool,
    /// True if the attention's output projection has a bias.
    pub attention_out_bias: bool,
    /// True if queries and keys are normalized per head before RoPE.
    pub qk_norm: bool,
    /// Activation of the feed-forward's gate.
    pub hidden_act: Activation,
    /// Factor of the embeddings.
    pub embedding_scale: f64,
    /// Attention scores are divided by the square root of this.
    pub query_pre_attn_scalar: f64,
    /// Soft cap `c` of the attention scores: `c * tanh(score / c)`.
    pub attn_logit_softcapping: Option<f64>,
    /// Soft cap of the logits, by the same formula.
    pub final_logit_softcapping: Option<f64>,
    /// Sliding window of each layer: the number of latest keys that a query sees, including its own. `None`: all keys.
    pub layer_windows: Vec<Option<usize>>,
}

/// Activation of a feed-forward's gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// GELU in its tanh approximation.
    GeluTanh,
}

impl DecoderConfig {
    /// Query heads per key and value head.
    pub fn group_heads(&self) -> usize {
        self.num_attention_heads / self.num_key_value_heads
    }

    /// Number of outputs of the joined attention input projection `q | k | v`.
    pub fn qkv_size(&self) -> usize {
        (self.num_attention_heads + 2 * self.num_key_value_heads) * self.head_dim
    }

    /// Reads the configuration of families with Llama's field names. `positions` is the default of
    /// `max_position_embeddings`. Biases, query and key norms and windows are unset; the caller sets those of its
    /// family.
    ///
    /// # Errors
    ///
    /// An error for a missing or invalid field.
    pub fn from_llama_like(config: &ConfigJson, positions: usize) -> Result<DecoderConfig> {
        let hidden_size = config.usize("hidden_size")?;
        let num_attention_heads = config.usize("num_attention_heads")?;
        let head_dim = config.usize_or("head_dim", hidden_size.checked_div(num_attention_heads).unwrap_or(0))?;
        let num_hidden_layers = config.usize("num_hidden_layers")?;
        // transformers 5 moved the rotary fields into `rope_parameters`.
        let rope = config.rope_parameters("full_attention");
        let rope_theta = match rope.and_then(|r| r.get("rope_theta")) {
            Some(theta) => config.to_f64("rope_parameters.rope_theta", theta)?,
            None => config.f64_or("rope_theta", 10000.0)?,
        };
        let scaling = rope.or_else(|| config.value.get("rope_scaling").filter(|v| v.is_object()));
        let mut decoder = DecoderConfig {
            model_type: config.str("model_type")?.into(),
            hidden_size,
            intermediate_size: config.usize("intermediate_size")?,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads: config.usize_or("num_key_value_heads", num_attention_heads)?,
            head_dim,
            vocab_size: config.usize("vocab_size")?,
            rms_norm_eps: config.f64("rms_norm_eps")?,
            rope_theta,
            window_rope_theta: None,
            rotary_dim: 0,
            rope_scaling: None,
            tie_word_embeddings: config.bool_or("tie_word_embeddings", false)?,
            max_position_embeddings: config.usize_or("max_position_embeddings", positions)?,
            qkv_bias: false,
            attention_out_bias: false,
            qk_norm: false,
            hidden_act: activation(config, &["hidden_act"])?.unwrap_or(Activation::Silu),
            embedding_scale: 1.0,
            query_pre_attn_scalar: 0.0,
            attn_logit_softcapping: None,
            final_logit_softcapping: None,
            // `checked` rejects an invalid number of layers later. Do not allocate by it before.
            layer_windows: vec![None; num_hidden_layers.min(MAX_LAYERS)],
        };
        decoder.set_head_dim(head_dim);
        let share = match rope.and_then(|r| r.get("partial_rotary_factor")) {
            Some(share) => config.to_f64("rope_parameters.partial_rotary_factor", share)?,
            None => config.f64_or("partial_rotary_factor", 1.0)?,
        };
        decoder.rotary_dim = (head_dim as f64 * share) as usize;
        let facts = (decoder.max_position_embeddings, decoder.rotary_dim);
        decoder.rope_scaling = scaling.map(|s| RopeScaling::from_json(config, s, facts)).transpose()?.flatten();
        Ok(decoder)
    }

    /// Reads the configuration of Gemma 2 and later. `positions` is the default of `max_position_embeddings`.
    ///
    /// # Errors
    ///
    /// An error for a missing or invalid field.
    pub fn from_gemma_like(config: &ConfigJson, positions: usize) -> Result<DecoderConfig> {
        let mut config = config.clone();
        // Defaults of transformers: published configurations omit these fields.
        let defaults = json!({
            "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "rms_norm_eps": 1e-6, "vocab_size": 262_208,
        });
        let fields = config.value.as_object_mut().expect("a ConfigJson is an object");
        for (name, value) in defaults.as_object().expect("the literal is an object") {
            fields.entry(name.clone()).or_insert(value.clone());
        }
        let mut decoder = DecoderConfig::from_llama_like(&config, positions)?;
        decoder.hidden_act = activation(&config, &["hidden_activation", "hidden_act"])?.unwrap_or(Activation::GeluTanh);
        decoder.embedding_scale = (decoder.hidden_size as f64).sqrt();
        decoder.query_pre_attn_scalar = config.f64_or("query_pre_attn_scalar", 256.0)?;
        decoder.tie_word_embeddings = true;
        Ok(decoder)
    }

    /// Sets the head width, and the fields whose defaults depend on it.
    pub(crate) fn set_head_dim(&mut self, head_dim: usize) {
        self.head_dim = head_dim;
        self.rotary_dim = head_dim;
        self.query_pre_attn_scalar = head_dim as f64;
    }

    /// Sets `sliding_window` in all layers except every `every`-th. The newer field `layer_types` takes precedence.
    pub(crate) fn set_windows_except_every(&mut self, config: &ConfigJson, every: usize) -> Result<()> {
        let size = Some(config.usize_or("sliding_window", 4096)?);
        self.set_windows(config, size, |layer| (layer + 1).checked_rem(every).is_none_or(|rest| rest != 0))
    }

    /// Sets `sliding_window` from layer `max_window_layers` on, if `use_sliding_window` is true. The newer field
    /// `layer_types` takes precedence.
    pub(crate) fn set_windows_from_max_window_layers(&mut self, config: &ConfigJson) -> Result<()> {
        if !config.bool_or("use_sliding_window", false)? {
            return Ok(());
        }
        let (size, first) = (config.opt_usize("sliding_window")?, config.usize_or("max_window_layers", 28)?);
        self.set_windows(config, size, |layer| layer >= first)
    }

    fn set_windows(
        &mut self,
        config: &ConfigJson,
        size: Option<usize>,
        has_window: impl Fn(usize) -> bool,
    ) -> Result<()> {
        let types = match config.value.get("layer_types") {
            Some(Value::Array(types)) if types.len() == self.layer_windows.len() => Some(types),
            None | Some(Value::Null) => None,
            Some(other) => return Err(config.bad("layer_types", "a list of one entry per layer", other)),
        };
        for (layer, window) in self.layer_windows.iter_mut().enumerate() {
            let has_window = match types.map(|types| &types[layer]) {
                None => has_window(layer),
                Some(kind) if kind == "sliding_attention" => true,
                Some(kind) if kind == "full_attention" => false,
                Some(kind) => {
                    return Err(config.bad("layer_types", "of `sliding_attention` and `full_attention`", kind));
                }
            };
            *window = size.filter(|_| has_window);
        }
        Ok(())
    }

    /// Rejects impossible shapes, so that later code does not divide by zero or overflow.
    pub(crate) fn checked(self, config: &ConfigJson) -> Result<DecoderConfig> {
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
            ("partial_rotary_factor", self.rotary_dim),
            ("sliding_window", self.layer_windows.iter().flatten().min().copied().unwrap_or(1)),
        ] {
            if value == 0 || value > 1 << 24 {
                return Err(bad(field, "between 1 and 16777216", value));
            }
        }
        if self.num_hidden_layers > MAX_LAYERS {
            return Err(bad("num_hidden_layers", "at most 4096", self.num_hidden_layers));
        }
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            return Err(bad("num_key_value_heads", "a divisor of `num_attention_heads`", self.num_key_value_heads));
        }
        // All published decoders satisfy this. Kernels rotate two pairs of elements at a time.
        if !self.head_dim.is_multiple_of(4) || self.head_dim > 512 {
            return Err(bad("head_dim", "a multiple of 4, at most 512", self.head_dim));
        }
        if !self.rotary_dim.is_multiple_of(4) || self.rotary_dim > self.head_dim {
            return Err(bad("partial_rotary_factor", "a multiple of 4 within `head_dim`", self.rotary_dim));
        }
        for (field, value) in [
            ("rms_norm_eps", self.rms_norm_eps),
            ("rope_theta", self.rope_theta),
            ("rope_local_base_freq", self.window_rope_theta.unwrap_or(1.0)),
            ("query_pre_attn_scalar", self.query_pre_attn_scalar),
            ("attn_logit_softcapping", self.attn_logit_softcapping.unwrap_or(1.0)),
            ("final_logit_softcapping", self.final_logit_softcapping.unwrap_or(1.0)),
        ] {
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

/// The activation in the first of the fields `names` that is set.
fn activation(config: &ConfigJson, names: &[&str]) -> Result<Option<Activation>> {
    let is_set = |name: &&&str| config.value.get(**name).is_some_and(|v| !v.is_null());
    let Some(name) = names.iter().find(is_set) else { return Ok(None) };
    match config.str(name)? {
        "silu" | "swish" => Ok(Some(Activation::Silu)),
        // Early configurations use `gelu` for the tanh approximation.
        "gelu_pytorch_tanh" | "gelu_new" | "gelu" => Ok(Some(Activation::GeluTanh)),
        other => Err(config.bad(name, "`silu` or `gelu_pytorch_tanh`", &Value::from(other))),
    }
}
