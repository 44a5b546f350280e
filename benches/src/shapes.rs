//! Shapes of published models, to be measured with random weights: no file has to travel.

use anyhow::{Context, Result};
use model_format::{DecoderConfig, QuantFormat, Role, params};

/// Name and configuration of each shape.
pub const SHAPES: &[(&str, &str)] = &[
    ("llama-3.2-3b", include_str!("../shapes/llama-3.2-3b.json")),
    ("llama-3.2-1b", include_str!("../shapes/llama-3.2-1b.json")),
    ("smollm2-135m", include_str!("../shapes/smollm2-135m.json")),
];

/// The configuration of a named shape.
pub fn by_name(name: &str) -> Result<DecoderConfig> {
    let known = || SHAPES.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    let (_, json) = SHAPES
        .iter()
        .find(|(shape, _)| *shape == name)
        .with_context(|| format!("there is no shape `{name}`; shapes: {}", known()))?;
    Ok(DecoderConfig::from_hf(json)?)
}

/// Bytes of weights that one decoded token reads: everything but the embedding table, unless that is the head too.
pub fn bytes_per_token(config: &DecoderConfig, format: &QuantFormat) -> usize {
    params(config)
        .iter()
        .filter(|param| param.role != Role::Embedding || config.tie_word_embeddings)
        .flat_map(|param| format.stored(param))
        .map(|stored| stored.shape.iter().product::<usize>() * stored.dtype.size())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 3.2127e9 and 1.2358e9 parameters, as published, in 4.5 bits each.
    #[test]
    fn bytes_per_token_are_the_published_parameters_in_four_and_a_half_bits() {
        let format = QuantFormat::by_name("q4f16_1").unwrap();
        for (name, gigabytes) in [("llama-3.2-3b", 1.807), ("llama-3.2-1b", 0.695)] {
            let bytes = bytes_per_token(&by_name(name).unwrap(), format) as f64 / 1e9;
            assert!((bytes - gigabytes).abs() < 0.001, "{name}: {bytes} GB");
        }
    }
}
