//! What MLC writes as `model_config`, per architecture: [`MlcConfig`]. weight-convert fills it in.

/// The layout of `model_config` in mlc-chat-config.json.
#[derive(Debug, Clone, Copy)]
pub struct MlcConfig {
    /// Its fields, in MLC's order.
    pub fields: &'static [Field],
    /// The fields of an inner `text_config`, which stands first and ends with everything else that config.json has, as
    /// `kwargs`.
    pub text_config: Option<&'static [Field]>,
    /// What becomes of the context.
    pub context: Context,
    /// Most tokens of a prompt that are processed at a time, where nobody says otherwise.
    pub prefill_limit: u64,
}

/// A field of `model_config`.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    /// Its name, mostly that of config.json.
    pub name: &'static str,
    /// MLC's value where config.json has none, as JSON. `None`: config.json must have it.
    pub default: Option<&'static str>,
}

/// A field that config.json must have, or that is computed.
pub(super) const fn needed(name: &'static str) -> Field {
    Field { name, default: None }
}

/// A field with a default.
pub(super) const fn or(name: &'static str, default: &'static str) -> Field {
    Field { name, default: Some(default) }
}

/// How MLC chooses `context_window_size`, and with it `prefill_chunk_size`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Context {
    /// The positions that the model was trained for.
    Positions,
    /// Without end (-1) where the model has a sliding window, which then is the prefill chunk; else its positions.
    Rolling,
    /// The sliding window, whatever is asked for.
    Window,
    /// At least so many tokens, and the sliding window where that is more.
    AtLeast(u64),
}
