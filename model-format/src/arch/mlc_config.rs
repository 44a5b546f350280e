//! [`MlcConfig`]: the fields of `model_config` that MLC writes for an architecture. weight-convert fills in the values.

/// The layout of `model_config` in mlc-chat-config.json.
#[derive(Debug, Clone, Copy)]
pub struct MlcConfig {
    /// Fields in MLC's order.
    pub fields: &'static [Field],
    /// Fields of an inner object `text_config`. It comes first and ends with `kwargs`, an object with all other fields
    /// of config.json.
    pub text_config: Option<&'static [Field]>,
    /// Rule for the context window.
    pub context: Context,
    /// Default of the largest number of prompt tokens per prefill step.
    pub prefill_limit: u64,
}

/// A field of `model_config`.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    /// Name of the field, in most cases as in config.json.
    pub name: &'static str,
    /// MLC's default, as JSON. `None`: config.json must have the field, or it is computed.
    pub default: Option<&'static str>,
}

/// A field that config.json must have, or that is computed.
pub(super) const fn required(name: &'static str) -> Field {
    Field { name, default: None }
}

/// A field with a default.
pub(super) const fn optional(name: &'static str, default: &'static str) -> Field {
    Field { name, default: Some(default) }
}

/// MLC's rule for `context_window_size`, which also affects `prefill_chunk_size`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Context {
    /// The context that the model was trained for (`max_position_embeddings`).
    Positions,
    /// With a sliding window: unlimited (-1), and the window is the prefill chunk. Without: as `Positions`.
    Rolling,
    /// The sliding window, regardless of the request.
    Window,
    /// The larger of this number of tokens and the sliding window.
    AtLeast(u64),
}
