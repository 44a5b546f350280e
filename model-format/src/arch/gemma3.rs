//! Gemma 3, text only. Differences from Gemma 2: no soft caps, normalized queries and keys, and a separate RoPE base
//! for layers with a sliding window.

use super::{
    Architecture, Context, MlcConfig, Names, llama,
    mlc_config::{optional, required},
    named, same,
};
use crate::{DecoderConfig, Role};

pub(super) const GEMMA3: Architecture = Architecture {
    model_type: "gemma3_text",
    decoder_config: |config| {
        let mut decoder = DecoderConfig::from_gemma_like(config, 131_072)?;
        decoder.qk_norm = true;
        let local = config.rope_parameters("sliding_attention").and_then(|rope| rope.get("rope_theta"));
        decoder.window_rope_theta = Some(match local {
            Some(theta) => config.to_f64("rope_parameters.sliding_attention.rope_theta", theta)?,
            None => config.f64_or("rope_local_base_freq", 10000.0)?,
        });
        decoder.set_windows_except_every(config, config.usize_or("sliding_window_pattern", 6)?)?;
        Ok(decoder)
    },
    names: Names {
        embedding: named("language_model.model.embed_tokens.weight", &["model.embed_tokens.weight"]),
        layers: named("language_model.model.layers", &["model.layers"]),
        layer: &[
            (Role::InputNorm, same(&["input_layernorm.weight"])),
            (Role::Query, same(&["self_attn.q_proj.weight"])),
            (Role::Key, same(&["self_attn.k_proj.weight"])),
            (Role::Value, same(&["self_attn.v_proj.weight"])),
            (Role::QueryNorm, same(&["self_attn.q_norm.weight"])),
            (Role::KeyNorm, same(&["self_attn.k_norm.weight"])),
            (Role::AttentionOut, same(&["self_attn.o_proj.weight"])),
            (Role::AttentionOutNorm, same(&["post_attention_layernorm.weight"])),
            (Role::PostAttentionNorm, same(&["pre_feedforward_layernorm.weight"])),
            (Role::GateUp, llama::GATE_UP),
            (Role::Down, same(&["mlp.down_proj.weight"])),
            (Role::DownNorm, same(&["post_feedforward_layernorm.weight"])),
        ],
        final_norm: named("language_model.model.norm.weight", &["model.norm.weight"]),
        lm_head: named("language_model.lm_head.weight", &["lm_head.weight"]),
    },
    norm_adds_one: true,
    unused: &["rotary_emb.inv_freq"],
    mlc_config: MlcConfig {
        fields: &[
            optional("vocab_size", "262208"),
            optional("tensor_parallel_shards", "1"),
            required("max_batch_size"),
            required("context_window_size"),
            required("sliding_window_size"),
            required("prefill_chunk_size"),
            optional("is_text_model", "true"),
        ],
        text_config: Some(&[
            required("hidden_size"),
            required("intermediate_size"),
            required("num_hidden_layers"),
            optional("attention_bias", "false"),
            optional("num_attention_heads", "8"),
            optional("num_key_value_heads", "4"),
            optional("head_dim", "256"),
            optional("rms_norm_eps", "1e-06"),
            optional("hidden_activation", "\"gelu_pytorch_tanh\""),
            required("position_embedding_base"),
            optional("rope_scaling", "0"),
            required("context_window_size"),
            required("prefill_chunk_size"),
            optional("query_pre_attn_scalar", "256"),
            required("sliding_window_size"),
        ]),
        context: Context::AtLeast(8192),
        prefill_limit: 8192,
    },
    gguf: None,
};
