//! [`check_runnable`]: which decoders a device can run. The one place that refuses the others; the loaders ask it, and so
//! does the quantizer.

use model_format::{DecoderConfig, decoder_config::Activation};

use crate::{
    Error, Result,
    ops::{Ops, Part},
};

/// Refuses a decoder that has a part for which the device has no operations.
pub fn check_runnable<O: Ops>(config: &DecoderConfig) -> Result<()> {
    let window = config.layer_windows.iter().flatten().min();
    let parts = [
        (config.qkv_bias || config.attention_out_bias, Part::AttentionBias, "a bias in its attention"),
        (config.qk_norm, Part::HeadNorms, "norms of its queries and keys"),
        (config.hidden_act != Activation::Silu, Part::GeluGate, "another activation than SiLU"),
        (config.scales_embeddings(), Part::ScaledEmbeddings, "scaled embeddings"),
        (
            config.attn_logit_softcapping.is_some() || config.final_logit_softcapping.is_some(),
            Part::SoftCap,
            "capped scores",
        ),
        (window.is_some_and(|&window| window < config.max_position_embeddings), Part::Window, "a sliding window"),
        (config.rotary_dim != config.head_dim, Part::PartialRotary, "heads that are rotated in part"),
    ];
    match parts.into_iter().find(|(is_there, part, _)| *is_there && !O::supports(*part)) {
        None => Ok(()),
        Some((.., part)) => Err(Error::NotRunnable { model_type: config.model_type.clone(), part }),
    }
}
