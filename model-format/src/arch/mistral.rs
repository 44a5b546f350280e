//! Mistral: Llama with a sliding window in all layers (early versions only).

use super::{
    Architecture, Context, MlcConfig, llama,
    mlc_config::{optional, required},
};
use crate::DecoderConfig;

pub(super) const MISTRAL: Architecture = Architecture {
    model_type: "mistral",
    decoder_config: |config| {
        let mut decoder = DecoderConfig::from_llama_like(config, 131_072)?;
        let window = config.opt_usize("sliding_window")?;
        decoder.layer_windows.fill(window);
        Ok(decoder)
    },
    names: llama::NAMES,
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
            required("position_embedding_base"),
            required("num_key_value_heads"),
            required("head_dim"),
            required("context_window_size"),
            required("sliding_window_size"),
            required("prefill_chunk_size"),
            optional("attention_sink_size", "4"),
            optional("tensor_parallel_shards", "1"),
            required("max_batch_size"),
        ],
        text_config: None,
        context: Context::Rolling,
        prefill_limit: 8192,
    },
    gguf: None,
};
