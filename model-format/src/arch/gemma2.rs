//! Gemma 2: norms before and after each half of a layer, capped attention scores and logits, a window in every other
//! layer.

use super::{
    Architecture, Context, MlcConfig, Names, llama,
    mlc_config::{needed, or},
    named, same,
};
use crate::{DecoderConfig, Role};

pub(super) const GEMMA2: Architecture = Architecture {
    model_type: "gemma2",
    decoder_config: |config| {
        let mut decoder = DecoderConfig::from_gemma_like(config, 8192)?;
        decoder.attn_logit_softcapping = config.opt_f64("attn_logit_softcapping")?;
        decoder.final_logit_softcapping = config.opt_f64("final_logit_softcapping")?;
        decoder.window_all_but_every(config, 2)?;
        Ok(decoder)
    },
    names: Names {
        layer: &[
            (Role::InputNorm, same(&["input_layernorm.weight"])),
            (Role::Qkv, named("self_attn.qkv_proj.weight", llama::QKV_WEIGHTS)),
            (Role::AttentionOut, same(&["self_attn.o_proj.weight"])),
            (Role::AttentionOutNorm, same(&["post_attention_layernorm.weight"])),
            (Role::PostAttentionNorm, same(&["pre_feedforward_layernorm.weight"])),
            (Role::GateUp, llama::GATE_UP),
            (Role::Down, same(&["mlp.down_proj.weight"])),
            (Role::DownNorm, same(&["post_feedforward_layernorm.weight"])),
        ],
        ..llama::NAMES
    },
    norm_adds_one: true,
    unused: &["rotary_emb.inv_freq"],
    mlc_config: MlcConfig {
        fields: &[
            needed("hidden_size"),
            needed("intermediate_size"),
            needed("attention_bias"),
            needed("num_attention_heads"),
            needed("num_key_value_heads"),
            needed("head_dim"),
            needed("num_hidden_layers"),
            needed("rms_norm_eps"),
            needed("vocab_size"),
            needed("hidden_activation"),
            needed("position_embedding_base"),
            needed("context_window_size"),
            needed("prefill_chunk_size"),
            or("tensor_parallel_shards", "1"),
            needed("max_batch_size"),
            or("attn_logit_softcapping", "null"),
            or("final_logit_softcapping", "null"),
            or("query_pre_attn_scalar", "null"),
            needed("sliding_window"),
        ],
        text_config: None,
        context: Context::Window,
        prefill_limit: 8192,
    },
    gguf: None,
};
