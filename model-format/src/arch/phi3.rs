//! Phi 3, 3.5 and 4 mini: Llama whose checkpoints have joined matrices already, under other names at MLC. Long contexts
//! by "longrope", with a list of factors for short texts and one for long.

use super::{
    Architecture, Context, MlcConfig, Names,
    mlc_config::{needed, or},
    named, same,
};
use crate::{DecoderConfig, Role};

pub(super) const PHI3: Architecture = Architecture {
    model_type: "phi3",
    decoder_config: |config| {
        let mut decoder = DecoderConfig::from_llama_like(config, 4096)?;
        let window = config.opt_usize("sliding_window")?;
        // A window that no text can fill is none.
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
            needed("model_type"),
            needed("hidden_size"),
            needed("vocab_size"),
            needed("num_hidden_layers"),
            needed("num_attention_heads"),
            needed("intermediate_size"),
            needed("rms_norm_eps"),
            needed("num_key_value_heads"),
            needed("max_position_embeddings"),
            needed("position_embedding_base"),
            needed("rope_scaling"),
            or("original_max_position_embeddings", "0"),
            needed("context_window_size"),
            needed("prefill_chunk_size"),
            needed("head_dim"),
            or("tensor_parallel_shards", "1"),
            needed("max_batch_size"),
            or("tie_word_embeddings", "false"),
            or("partial_rotary_factor", "1.0"),
        ],
        text_config: None,
        context: Context::Positions,
        prefill_limit: 8192,
    },
    gguf: None,
};
