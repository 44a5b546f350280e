//! The supported architectures: one record per file, listed in [`ARCHITECTURES`].
//!
//! A record has the reader of config.json, the names of the parameters, the joined parameters, and the fields of MLC's
//! configuration. `params.rs` expands it to the list of parameters. No code outside this folder names an architecture.

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

/// All supported architectures.
pub const ARCHITECTURES: &[Architecture] =
    &[llama::LLAMA, mistral::MISTRAL, qwen2::QWEN2, qwen3::QWEN3, phi3::PHI3, gemma2::GEMMA2, gemma3::GEMMA3];

/// A family of decoders.
#[derive(Debug, Clone, Copy)]
pub struct Architecture {
    /// `model_type` of config.json.
    pub model_type: &'static str,
    /// Reads the family's config.json.
    pub decoder_config: fn(&ConfigJson) -> Result<DecoderConfig>,
    /// Names of the parameters.
    pub names: Names,
    /// True if norms multiply by one plus their weight. MLC's folders store the sum, checkpoints the weight.
    pub norm_adds_one: bool,
    /// Suffixes of checkpoint tensors to ignore.
    pub unused: &'static [&'static str],
    /// Fields of `model_config` in mlc-chat-config.json.
    pub mlc_config: MlcConfig,
    /// llama.cpp's conventions for the family. `None` if its GGUF files are not supported.
    pub gguf: Option<Gguf>,
}

/// llama.cpp's conventions for a family in GGUF files.
#[derive(Debug, Clone, Copy)]
pub struct Gguf {
    /// Value of `general.architecture`, also the prefix of the configuration's keys.
    pub architecture: &'static str,
    /// True if the rows of q and k are interleaved in each head, so that the two rows of each RoPE pair are adjacent.
    pub interleaves_qk: bool,
    /// Class in transformers, for `architectures` in config.json.
    pub class: &'static str,
}

/// Names of a family's parameters.
#[derive(Debug, Clone, Copy)]
pub struct Names {
    /// The token embedding table.
    pub embedding: Named,
    /// Prefix of a layer's parameters, before the layer's number.
    pub layers: Named,
    /// Parameters of a layer without the layer prefix, in the order of the forward pass. Optional ones are skipped if
    /// the configuration does not use them.
    pub layer: &'static [LayerParam],
    /// The norm after the last layer.
    pub final_norm: Named,
    /// The output projection. Skipped if it is the embedding table.
    pub lm_head: Named,
}

/// A layer's parameter: constructor of its [`Role`] from the layer index, and its names.
pub type LayerParam = (fn(usize) -> Role, Named);

/// The names of a parameter in MLC folders and in checkpoints.
#[derive(Debug, Clone, Copy)]
pub struct Named {
    /// MLC's name.
    pub mlc: &'static str,
    /// Checkpoint tensors in order. MLC joins them by rows (rows are outputs).
    pub sources: &'static [&'static str],
}

/// A parameter with the same name in MLC folders and checkpoints.
const fn same(name: &'static [&'static str; 1]) -> Named {
    Named { mlc: name[0], sources: name }
}

/// A parameter with a different name in MLC folders, or joined from several tensors.
const fn named(mlc: &'static str, sources: &'static [&'static str]) -> Named {
    Named { mlc, sources }
}

impl Architecture {
    /// The architecture with this `model_type`.
    ///
    /// # Errors
    ///
    /// [`Error::UnsupportedArchitecture`].
    pub fn by_model_type(model_type: &str) -> Result<&'static Architecture> {
        ARCHITECTURES.iter().find(|arch| arch.model_type == model_type).ok_or_else(|| Error::UnsupportedArchitecture {
            model_type: model_type.into(),
            supported: ARCHITECTURES.iter().map(|arch| arch.model_type).collect(),
        })
    }
}
