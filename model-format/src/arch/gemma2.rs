//! Gemma 2: norms before and after attention and feed-forward, soft caps on attention scores and logits, a sliding
//! window in every other layer.

use super::{
    Architecture, Context, MlcConfig, Names, llama,
    mlc_config::{optional, required},
    named, same,
};
use crate::{DecoderConfig, Role};

pub(super) const GEMMA2: Architecture = Architecture {
    model_type: "gemma2",
    decoder_config: |config| {
        let mut decoder = DecoderConfig::from_gemma_like(config, 8192)?;
        decoder.attn_logit_softcapping = config.opt_f64("attn_logit_softcapping")?;
        decoder.final_logit_softcapping = config.opt_f64("final_logit_softcapping")?;
        decoder.set_windows_except_every(config, 2)?;
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
            required("hidden_size"),
            required("intermediate_size"),
            required("attention_bias"),
            required("num_attention_heads"),
            required("num_key_value_heads"),
            required("head_dim"),
            required("num_hidden_layers"),
            required("rms_norm_eps"),
            required("vocab_size"),
            required("hidden_activation"),
            required("position_embedding_base"),
            required("context_window_size"),
            required("prefill_chunk_size"),
            optional("tensor_parallel_shards", "1"),
            required("max_batch_size"),
            optional("attn_logit_softcapping", "null"),
            optional("final_logit_softcapping", "null"),
            optional("query_pre_attn_scalar", "null"),
            required("sliding_window"),
        ],
        text_config: None,
        context: Context::Window,
        prefill_limit: 8192,
    },
    gguf: None,
};
