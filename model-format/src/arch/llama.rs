//! Llama, and the models published with this `model_type`: Llama 2, 3, 3.1, 3.2, SmolLM2, WizardMath ...

use super::{
    Architecture, Context, Gguf, MlcConfig, Named, Names,
    mlc_config::{optional, required},
    named, same,
};
use crate::{DecoderConfig, Role};

pub(super) const LLAMA: Architecture = Architecture {
    model_type: "llama",
    decoder_config: |config| DecoderConfig::from_llama_like(config, 2048),
    names: NAMES,
    norm_adds_one: false,
    unused: &["rotary_emb.inv_freq"],
    mlc_config: MlcConfig {
        fields: &[
            required("hidden_size"),
            required("intermediate_size"),
            required("num_attention_heads"),
            required("num_hidden_layers"),
            required("rms_norm_eps"),
            required("vocab_size"),
            optional("tie_word_embeddings", "false"),
            required("position_embedding_base"),
            required("rope_scaling"),
            required("context_window_size"),
            required("prefill_chunk_size"),
            required("num_key_value_heads"),
            required("head_dim"),
            optional("tensor_parallel_shards", "1"),
            optional("pipeline_parallel_stages", "1"),
            required("max_batch_size"),
            optional("disaggregation", "false"),
        ],
        text_config: None,
        context: Context::Positions,
        prefill_limit: 8192,
    },
    gguf: Some(Gguf { architecture: "llama", interleaves_qk: true, class: "LlamaForCausalLM" }),
};

/// Llama's names, shared by other families.
pub(super) const NAMES: Names = Names {
    embedding: same(&["model.embed_tokens.weight"]),
    layers: same(&["model.layers"]),
    layer: &[
        (Role::InputNorm, same(&["input_layernorm.weight"])),
        (Role::Qkv, named("self_attn.qkv_proj.weight", QKV_WEIGHTS)),
        (Role::AttentionOut, same(&["self_attn.o_proj.weight"])),
        (Role::PostAttentionNorm, same(&["post_attention_layernorm.weight"])),
        (Role::GateUp, GATE_UP),
        (Role::Down, same(&["mlp.down_proj.weight"])),
    ],
    final_norm: same(&["model.norm.weight"]),
    lm_head: same(&["lm_head.weight"]),
};

/// The tensors that MLC joins to the attention's input projection.
pub(super) const QKV_WEIGHTS: &[&str] =
    &["self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"];

/// The tensors that MLC joins to the feed-forward's input projection.
pub(super) const GATE_UP: Named = named("mlp.gate_up_proj.weight", &["mlp.gate_proj.weight", "mlp.up_proj.weight"]);
