//! Llama, and everything that publishes itself as Llama: Llama 2, 3, 3.1, 3.2, SmolLM2, WizardMath ...

use super::{Architecture, Fused, Gguf};
use crate::DecoderConfig;

pub(super) const LLAMA: Architecture = Architecture {
    model_type: "llama",
    decoder_config: DecoderConfig::from_llama_like,
    qkv: Fused { name: "self_attn.qkv_proj", parts: &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"] },
    gate_up: Fused { name: "mlp.gate_up_proj", parts: &["mlp.gate_proj", "mlp.up_proj"] },
    unused: &["rotary_emb.inv_freq"],
    model_config: &[
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_hidden_layers",
        "rms_norm_eps",
        "vocab_size",
        "tie_word_embeddings",
        "position_embedding_base",
        "rope_scaling",
        "context_window_size",
        "prefill_chunk_size",
        "num_key_value_heads",
        "head_dim",
        "tensor_parallel_shards",
        "pipeline_parallel_stages",
        "max_batch_size",
        "disaggregation",
    ],
    gguf: Some(Gguf { architecture: "llama", interleaves_qk: true, class: "LlamaForCausalLM" }),
};
