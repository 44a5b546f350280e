//! [`check_runnable`]: which decoders `decoder.rs` can run. The one place that refuses the others; the loaders ask it, and
//! so does the quantizer.

use model_format::{DecoderConfig, Role, decoder_config::Activation, params, rope::RopeScaling};

use crate::{Error, Result};

/// Refuses a decoder that has a part which the forward pass does not have.
pub fn check_runnable(config: &DecoderConfig) -> Result<()> {
    // All layers have the same parts.
    let layer = DecoderConfig { num_hidden_layers: 1, ..config.clone() };
    let has = |wanted: fn(usize) -> Role| params(&layer).iter().any(|param| param.role == wanted(0));
    let long_rope = matches!(config.rope_scaling, Some(RopeScaling::LongRope { .. }));
    let window = config.layer_windows.iter().flatten().min();
    let parts = [
        (has(Role::QkvBias) || has(Role::AttentionOutBias), "a bias in its attention"),
        (has(Role::QueryNorm), "norms of its queries and keys"),
        (has(Role::AttentionOutNorm), "norms after attention and feed-forward"),
        (has(Role::Query), "queries, keys and values that are not joined"),
        (config.hidden_act != Activation::Silu, "another activation than SiLU"),
        (config.embedding_scale.to_bits() != 1f64.to_bits(), "scaled embeddings"),
        (config.attn_logit_softcapping.is_some() || config.final_logit_softcapping.is_some(), "capped scores"),
        (window.is_some_and(|&window| window < config.max_position_embeddings), "a sliding window"),
        (config.rotary_dim != config.head_dim, "heads that are rotated in part"),
        (long_rope, "rotary frequencies that depend on the length of the text"),
    ];
    match parts.into_iter().find(|(is_there, _)| *is_there) {
        None => Ok(()),
        Some((_, part)) => Err(Error::NotRunnable { model_type: config.model_type.clone(), part }),
    }
}
