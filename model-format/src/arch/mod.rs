//! Architectures as records: one file each, listed in [`ARCHITECTURES`].
//!
//! A record says how to read the configuration, which parts are fused under which name, and what may be ignored.
//! `params.rs` expands it into the list of parameters; nothing outside this folder names an architecture.

mod llama;

use crate::{DecoderConfig, Error, Result, decoder_config::ConfigJson};

/// Every architecture there is.
pub const ARCHITECTURES: &[Architecture] = &[llama::LLAMA];

/// What sets one family of decoders apart from another.
#[derive(Debug, Clone, Copy)]
pub struct Architecture {
    /// `model_type` of config.json.
    pub model_type: &'static str,
    /// Reads the family's config.json.
    pub decoder_config: fn(&ConfigJson) -> Result<DecoderConfig>,
    /// The attention's input projections, joined by rows.
    pub qkv: Fused,
    /// The feed-forward's input projections, joined by rows.
    pub gate_up: Fused,
    /// Ends of checkpoint names that are known and not needed.
    pub unused: &'static [&'static str],
    /// Fields of `model_config` in mlc-chat-config.json, in MLC's order.
    pub model_config: &'static [&'static str],
    /// How llama.cpp writes the family, where its GGUF files are read.
    pub gguf: Option<Gguf>,
}

/// A family in llama.cpp's GGUF files.
#[derive(Debug, Clone, Copy)]
pub struct Gguf {
    /// `general.architecture`, which also begins the keys of the configuration.
    pub architecture: &'static str,
    /// Whether the rows of q and k were reordered, head by head, so that the two elements a rotation pairs are neighbours.
    pub interleaves_qk: bool,
    /// transformers' class, for `architectures` of config.json.
    pub class: &'static str,
}

/// Matrices that a checkpoint keeps apart and MLC joins, row after row (rows are outputs).
#[derive(Debug, Clone, Copy)]
pub struct Fused {
    /// Name of the joined module inside a layer.
    pub name: &'static str,
    /// Names of the parts inside a layer, in order.
    pub parts: &'static [&'static str],
}

impl Architecture {
    /// The record of a `model_type`.
    pub fn by_model_type(model_type: &str) -> Result<&'static Architecture> {
        ARCHITECTURES
            .iter()
            .find(|arch| arch.model_type == model_type)
            .ok_or_else(|| Error::UnsupportedArchitecture { model_type: model_type.into() })
    }
}
