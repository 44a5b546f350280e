//! Llama, and everything that publishes itself as Llama: Llama 2, 3, 3.1, 3.2, SmolLM2, WizardMath ...

use super::{Architecture, Fused, Gguf};
use crate::DecoderConfig;

pub(super) const LLAMA: Architecture = Architecture {
    model_type: "llama",
    decoder_config: DecoderConfig::from_llama_like,
    qkv: Fused { name: "self_attn.qkv_proj", parts: &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"] },
    gate_up: Fused { name: "mlp.gate_up_proj", parts: &["mlp.gate_proj", "mlp.up_proj"] },
    unused: &["rotary_emb.inv_freq"],
    gguf: Some(Gguf { architecture: "llama", interleaves_qk: true, class: "LlamaForCausalLM" }),
};
