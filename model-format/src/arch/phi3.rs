//! Phi 3, 3.5 and 4 mini. Differences from Llama: checkpoints have joined matrices, MLC uses other names, and long
//! contexts use "longrope", with one list of RoPE divisors for short texts and one for long texts.

use super::{
    Architecture, Context, MlcConfig, Names,
    mlc_config::{optional, required},
    named, same,
};
use crate::{DecoderConfig, Role};

pub(super) const PHI3: Architecture = Architecture {
    model_type: "phi3",
    decoder_config: |config| {
        let mut decoder = DecoderConfig::from_llama_like(config, 4096)?;
        let window = config.opt_usize("sliding_window")?;
        // A window as long as the context has no effect.
        decoder.layer_windows.fill(window.filter(|&window| window < decoder.max_position_embeddings));
        Ok(decoder)
    },
    names: Names {
        embedding: named("transformer.embd.weight", &["model.embed_tokens.weight"]),
        layers: named("transformer.h", &["model.layers"]),
        layer: &[
            (Role::InputNorm, named("ln.weight", &["input_layernorm.weight"])),
            (Role::Qkv, named("mixer.qkv_proj.weight", &["self_attn.qkv_proj.weight"])),
            (Role::AttentionOut, named("mixer.out_proj.weight", &["self_attn.o_proj.weight"])),
            (Role::PostAttentionNorm, same(&["post_attention_layernorm.weight"])),
            (Role::GateUp, same(&["mlp.gate_up_proj.weight"])),
            (Role::Down, same(&["mlp.down_proj.weight"])),
        ],
        final_norm: named("transformer.norm.weight", &["model.norm.weight"]),
        lm_head: same(&["lm_head.weight"]),
    },
    norm_adds_one: false,
    unused: &["rotary_emb.inv_freq"],
    mlc_config: MlcConfig {
        fields: &[
            required("model_type"),
            required("hidden_size"),
            required("vocab_size"),
            required("num_hidden_layers"),
            required("num_attention_heads"),
            required("intermediate_size"),
            required("rms_norm_eps"),
            required("num_key_value_heads"),
            required("max_position_embeddings"),
            required("position_embedding_base"),
            required("rope_scaling"),
            optional("original_max_position_embeddings", "0"),
            required("context_window_size"),
            required("prefill_chunk_size"),
            required("head_dim"),
            optional("tensor_parallel_shards", "1"),
            required("max_batch_size"),
            optional("tie_word_embeddings", "false"),
            optional("partial_rotary_factor", "1.0"),
        ],
        text_config: None,
        context: Context::Positions,
        prefill_limit: 8192,
    },
    gguf: None,
};
