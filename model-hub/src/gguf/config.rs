//! Rebuilds config.json and generation_config.json from a GGUF file's metadata.

use model_format::arch::{ARCHITECTURES, Architecture, Gguf};
use serde_json::{Map, Value, json};

use super::metadata::{Metadata, decimal};
use crate::Result;

/// The file's architecture, and llama.cpp's conventions for it.
pub(super) fn architecture(metadata: &Metadata) -> Result<(&'static Architecture, Gguf)> {
    let name = metadata.str("general.architecture")?;
    let found = ARCHITECTURES.iter().find_map(|arch| Some((arch, arch.gguf.filter(|gguf| gguf.architecture == name)?)));
    found.ok_or_else(|| {
        let known: Vec<_> = ARCHITECTURES.iter().filter_map(|arch| arch.gguf).map(|gguf| gguf.architecture).collect();
        metadata.unsupported(format!("its architecture is `{name}`; supported in GGUF files: {}", known.join(", ")))
    })
}

/// Facts about the configuration that only the tensors show.
pub(super) struct Facts<'a> {
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// True if the output matrix is the embedding table.
    pub tied: bool,
    /// Divisors of the rotary frequencies, `head_dim / 2` values. `None` without this tensor.
    pub rope_divisors: Option<&'a [f32]>,
}

/// Content of config.json.
pub(super) fn config_json(metadata: &Metadata, facts: &Facts<'_>) -> Result<String> {
    let (arch, gguf) = architecture(metadata)?;
    let key = |name: &str| format!("{}.{name}", gguf.architecture);
    if metadata.opt_usize(&key("expert_count"))?.unwrap_or(0) > 0 {
        return Err(metadata.unsupported("it is a mixture of experts"));
    }
    let hidden_size = metadata.usize(&key("embedding_length"))?;
    let heads = metadata.usize(&key("attention.head_count"))?;
    if heads == 0 {
        return Err(metadata.bad("it has no attention heads"));
    }
    let head_dim = metadata.opt_usize(&key("attention.key_length"))?.unwrap_or(hidden_size / heads);
    let value_dim = metadata.opt_usize(&key("attention.value_length"))?.unwrap_or(head_dim);
    let rotated = metadata.opt_usize(&key("rope.dimension_count"))?.unwrap_or(head_dim);
    if value_dim != head_dim || rotated != head_dim {
        return Err(metadata.unsupported(format!(
            "its heads have {head_dim} dimensions in keys, {value_dim} in values and {rotated} in RoPE; these must be equal"
        )));
    }
    let rope_theta = metadata.opt_f64(&key("rope.freq_base"))?.unwrap_or(10000.0);
    let tokens = special_tokens(metadata, facts.vocab_size)?;

    let mut config = Map::new();
    config.insert("architectures".into(), json!([gguf.class]));
    config.insert("model_type".into(), arch.model_type.into());
    config.extend(tokens);
    config.extend([
        ("head_dim".into(), head_dim.into()),
        ("hidden_act".into(), "silu".into()),
        ("hidden_size".into(), hidden_size.into()),
        ("intermediate_size".into(), metadata.usize(&key("feed_forward_length"))?.into()),
        ("max_position_embeddings".into(), metadata.usize(&key("context_length"))?.into()),
        ("num_attention_heads".into(), heads.into()),
        ("num_hidden_layers".into(), metadata.usize(&key("block_count"))?.into()),
        ("num_key_value_heads".into(), metadata.opt_usize(&key("attention.head_count_kv"))?.unwrap_or(heads).into()),
        ("rms_norm_eps".into(), metadata.f64(&key("attention.layer_norm_rms_epsilon"))?.into()),
        ("rope_scaling".into(), rope_scaling(metadata, &key("rope.scaling"), facts, head_dim, rope_theta)?),
        ("rope_theta".into(), rope_theta.into()),
        ("tie_word_embeddings".into(), facts.tied.into()),
        ("torch_dtype".into(), "float16".into()),
        ("vocab_size".into(), facts.vocab_size.into()),
    ]);
    Ok(pretty(&Value::Object(config)))
}

/// Content of generation_config.json.
pub(super) fn generation_config_json(metadata: &Metadata, vocab_size: usize) -> Result<String> {
    Ok(pretty(&Value::Object(special_tokens(metadata, vocab_size)?)))
}

/// The existing ones of `bos_token_id`, `eos_token_id` and `pad_token_id`. `eos_token_id` is a list if a different
/// token (EOT) ends a chat turn.
fn special_tokens(metadata: &Metadata, vocab_size: usize) -> Result<Map<String, Value>> {
    let id = |name: &str| metadata.opt_token_id(&format!("tokenizer.ggml.{name}_token_id"), vocab_size);
    let eos = match (id("eos")?, id("eot")?) {
        (Some(eos), Some(eot)) if eos != eot => Some(json!([eos, eot])),
        (eos, eot) => eos.or(eot).map(Value::from),
    };
    let ids = [
        ("bos_token_id", id("bos")?.map(Value::from)),
        ("eos_token_id", eos),
        ("pad_token_id", id("padding")?.map(Value::from)),
    ];
    Ok(ids.into_iter().filter_map(|(name, value)| Some((name.into(), value?))).collect())
}

/// `rope_scaling` of config.json, from the keys below `prefix` or from the divisors.
fn rope_scaling(metadata: &Metadata, prefix: &str, facts: &Facts<'_>, head_dim: usize, theta: f64) -> Result<Value> {
    let kind = metadata.opt_str(&format!("{prefix}.type"))?.unwrap_or("none");
    match (kind, facts.rope_divisors) {
        ("none", None) => Ok(Value::Null),
        ("linear", None) => Ok(json!({
            "rope_type": "linear",
            "factor": metadata.f64(&format!("{prefix}.factor"))?,
        })),
        ("none", Some(divisors)) => {
            let scaling = llama3_scaling(divisors, head_dim, theta);
            scaling
                .ok_or_else(|| metadata.unsupported("its `rope_freqs.weight` does not match the scaling of Llama 3.1"))
        }
        (other, _) => Err(metadata.unsupported(format!("its RoPE scaling is `{other}`"))),
    }
}

/// The `rope_scaling` parameters that give these divisors. llama.cpp's converter stores only the divisors. All
/// published models with this scaling use the three constants below, so this takes `factor` from the largest divisor
/// and compares the others. `None` if they differ.
fn llama3_scaling(divisors: &[f32], head_dim: usize, theta: f64) -> Option<Value> {
    let (low, high, original) = (1.0, 4.0, 8192.0);
    let factor = decimal(divisors.iter().copied().fold(1.0, f32::max));
    let expected = (0..head_dim / 2).map(|i| {
        let wavelength = 2.0 * std::f64::consts::PI * theta.powf(2.0 * i as f64 / head_dim as f64);
        let smooth: f64 = ((original / wavelength - low) / (high - low)).clamp(0.0, 1.0);
        1.0 / ((1.0 - smooth) / factor + smooth)
    });
    let equal = divisors.len() == head_dim / 2
        && expected.zip(divisors).all(|(expected, &found)| (expected - f64::from(found)).abs() < 1e-3 * expected);
    equal.then(|| {
        json!({
            "factor": factor,
            "high_freq_factor": high,
            "low_freq_factor": low,
            "original_max_position_embeddings": original as usize,
            "rope_type": "llama3",
        })
    })
}

/// JSON indented by two spaces, like the files of transformers.
pub(super) fn pretty(value: &Value) -> String {
    let mut text = serde_json::to_string_pretty(value).expect("a JSON value serializes");
    text.push('\n');
    text
}
