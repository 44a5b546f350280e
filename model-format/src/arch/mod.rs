//! Architectures as records: one file each, listed in [`ARCHITECTURES`].
//!
//! A record says how to read the configuration, what the parameters are called, which of them are joined, and what MLC
//! writes into its configuration. `params.rs` expands it into the list of parameters; nothing outside this folder names an
//! architecture.

mod gemma2;
mod gemma3;
mod llama;
mod mistral;
mod mlc_config;
mod phi3;
mod qwen2;
mod qwen3;
mod read_config;

pub use mlc_config::{Context, Field, MlcConfig};

use crate::{DecoderConfig, Error, Result, Role, config_json::ConfigJson};

/// Every architecture there is.
pub const ARCHITECTURES: &[Architecture] =
    &[llama::LLAMA, mistral::MISTRAL, qwen2::QWEN2, qwen3::QWEN3, phi3::PHI3, gemma2::GEMMA2, gemma3::GEMMA3];

/// What sets one family of decoders apart from another.
#[derive(Debug, Clone, Copy)]
pub struct Architecture {
    /// `model_type` of config.json.
    pub model_type: &'static str,
    /// Reads the family's config.json.
    pub decoder_config: fn(&ConfigJson) -> Result<DecoderConfig>,
    /// What its parameters are called.
    pub names: Names,
    /// Whether norms multiply by one plus their weight. MLC's folders hold the sum, checkpoints the weight.
    pub norm_adds_one: bool,
    /// Ends of checkpoint names that are known and not needed.
    pub unused: &'static [&'static str],
    /// `model_config` of mlc-chat-config.json.
    pub mlc_config: MlcConfig,
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

/// What the parameters of a family are called.
#[derive(Debug, Clone, Copy)]
pub struct Names {
    /// The token embedding table.
    pub embedding: Named,
    /// What stands before the number of a layer.
    pub layers: Named,
    /// The parameters of a layer, named inside it, in the order of the forward pass. Those that a configuration does
    /// without are passed over.
    pub layer: &'static [LayerParam],
    /// The norm after the last layer.
    pub final_norm: Named,
    /// The output projection, where it is not the embedding table.
    pub lm_head: Named,
}

/// The place of a layer's parameter, by the layer's number, and its names.
pub type LayerParam = (fn(usize) -> Role, Named);

/// A parameter under MLC's name, and the checkpoint's tensors that make it up, joined by rows (rows are outputs).
#[derive(Debug, Clone, Copy)]
pub struct Named {
    /// MLC's name.
    pub mlc: &'static str,
    /// The checkpoint's names, in order.
    pub sources: &'static [&'static str],
}

/// A parameter that is called the same on both sides.
const fn same(name: &'static [&'static str; 1]) -> Named {
    Named { mlc: name[0], sources: name }
}

/// A parameter that MLC calls otherwise, or joins.
const fn named(mlc: &'static str, sources: &'static [&'static str]) -> Named {
    Named { mlc, sources }
}

impl Architecture {
    /// The record of a `model_type`.
    pub fn by_model_type(model_type: &str) -> Result<&'static Architecture> {
        ARCHITECTURES.iter().find(|arch| arch.model_type == model_type).ok_or_else(|| Error::UnsupportedArchitecture {
            model_type: model_type.into(),
            supported: ARCHITECTURES.iter().map(|arch| arch.model_type).collect(),
        })
    }
}
