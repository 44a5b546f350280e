//! Qwen 2 and 2.5: Llama with a bias on queries, keys and values.

use super::{
    Architecture, Context, MlcConfig, Named, Names, llama,
    mlc_config::{optional, required},
    named, same,
};
use crate::{DecoderConfig, Role};

pub(super) const QWEN2: Architecture = Architecture {
    model_type: "qwen2",
    decoder_config: |config| {
        let mut decoder = DecoderConfig::from_llama_like(config, 32_768)?;
        decoder.qkv_bias = true;
        decoder.set_windows_from_max_window_layers(config)?;
        Ok(decoder)
    },
    names: Names {
        layer: &[
            (Role::InputNorm, same(&["input_layernorm.weight"])),
            (Role::Qkv, QKV),
            (Role::QkvBias, QKV_BIAS),
            (Role::AttentionOut, same(&["self_attn.o_proj.weight"])),
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
        ],
        text_config: None,
        context: Context::Positions,
        prefill_limit: 8192,
    },
    gguf: None,
};

/// Names of the attention's input projection.
pub(super) const QKV: Named = named("self_attn.c_attn.weight", llama::QKV_WEIGHTS);

/// Names of its bias.
pub(super) const QKV_BIAS: Named =
    named("self_attn.c_attn.bias", &["self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"]);
