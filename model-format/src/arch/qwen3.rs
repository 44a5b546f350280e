//! Qwen 3, dense. Differences from Qwen 2: queries and keys are normalized per head, and the bias is optional (off by
//! default).

use super::{
    Architecture, Context, MlcConfig, Names, llama,
    mlc_config::{optional, required},
    qwen2::{QKV, QKV_BIAS},
    same,
};
use crate::{DecoderConfig, Role};

pub(super) const QWEN3: Architecture = Architecture {
    model_type: "qwen3",
    decoder_config: |config| {
        let mut decoder = DecoderConfig::from_llama_like(config, 32_768)?;
        // transformers' default does not depend on the hidden size.
        decoder.set_head_dim(config.usize_or("head_dim", 128)?);
        decoder.qk_norm = true;
        decoder.qkv_bias = config.bool_or("attention_bias", false)?;
        decoder.attention_out_bias = decoder.qkv_bias;
        decoder.set_windows_from_max_window_layers(config)?;
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
            required("hidden_act"),
            required("hidden_size"),
            required("intermediate_size"),
            required("attention_bias"),
            required("num_attention_heads"),
            required("num_hidden_layers"),
            required("num_key_value_heads"),
            required("rms_norm_eps"),
            required("rope_theta"),
            required("vocab_size"),
            optional("tie_word_embeddings", "false"),
            required("context_window_size"),
            required("prefill_chunk_size"),
            optional("tensor_parallel_shards", "1"),
            required("head_dim"),
            optional("dtype", "\"float32\""),
            required("max_batch_size"),
            optional("weight_block_size", "null"),
        ],
        text_config: None,
        context: Context::Positions,
        prefill_limit: 2048,
    },
    gguf: None,
};
