//! Qwen 3, dense: queries and keys are normed head by head; the bias is gone, though a configuration may ask for it.

use super::{
    Architecture, Context, MlcConfig, Names, llama,
    mlc_config::{needed, or},
    qwen2::{QKV, QKV_BIAS},
    same,
};
use crate::{DecoderConfig, Role};

pub(super) const QWEN3: Architecture = Architecture {
    model_type: "qwen3",
    decoder_config: |config| {
        let mut decoder = DecoderConfig::from_llama_like(config, 32_768)?;
        // transformers' default, whatever the hidden size.
        decoder.set_head_dim(config.usize_or("head_dim", 128)?);
        decoder.qk_norm = true;
        decoder.qkv_bias = config.bool_or("attention_bias", false)?;
        decoder.attention_out_bias = decoder.qkv_bias;
        decoder.window_layers_from_max_window_layers(config)?;
        Ok(decoder)
    },
    names: Names {
        layer: &[
            (Role::InputNorm, same(&["input_layernorm.weight"])),
            (Role::Qkv, QKV),
            (Role::QkvBias, QKV_BIAS),
            (Role::QueryNorm, same(&["self_attn.q_norm.weight"])),
            (Role::KeyNorm, same(&["self_attn.k_norm.weight"])),
            (Role::AttentionOut, same(&["self_attn.o_proj.weight"])),
            (Role::AttentionOutBias, same(&["self_attn.o_proj.bias"])),
            (Role::PostAttentionNorm, same(&["post_attention_layernorm.weight"])),
            (Role::GateUp, llama::GATE_UP),
            (Role::Down, same(&["mlp.down_proj.weight"])),
        ],
        ..llama::NAMES
    },
    norm_adds_one: false,
    unused: &["rotary_emb.inv_freq"],
    mlc_config: MlcConfig {
        fields: &[
            needed("hidden_act"),
            needed("hidden_size"),
            needed("intermediate_size"),
            needed("attention_bias"),
            needed("num_attention_heads"),
            needed("num_hidden_layers"),
            needed("num_key_value_heads"),
            needed("rms_norm_eps"),
            needed("rope_theta"),
            needed("vocab_size"),
            or("tie_word_embeddings", "false"),
            needed("context_window_size"),
            needed("prefill_chunk_size"),
            or("tensor_parallel_shards", "1"),
            needed("head_dim"),
            or("dtype", "\"float32\""),
            needed("max_batch_size"),
            or("weight_block_size", "null"),
        ],
        text_config: None,
        context: Context::Positions,
        prefill_limit: 2048,
    },
    gguf: None,
};
