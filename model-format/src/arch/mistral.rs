//! Mistral: Llama with a sliding window, in its first versions.

use super::{
    Architecture, Context, MlcConfig, llama,
    mlc_config::{needed, or},
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
            needed("hidden_size"),
            needed("intermediate_size"),
            needed("num_attention_heads"),
            needed("num_hidden_layers"),
            needed("rms_norm_eps"),
            needed("vocab_size"),
            needed("position_embedding_base"),
            needed("num_key_value_heads"),
            needed("head_dim"),
            needed("context_window_size"),
            needed("sliding_window_size"),
            needed("prefill_chunk_size"),
            or("attention_sink_size", "4"),
            or("tensor_parallel_shards", "1"),
            needed("max_batch_size"),
        ],
        text_config: None,
        context: Context::Rolling,
        prefill_limit: 8192,
    },
    gguf: None,
};
