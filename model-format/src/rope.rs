//! Rotary position embedding: the frequencies of a configuration, and the table of cosines and sines.
//!
//! The rotation pairs element `i` with `i + head_dim / 2` (the "half-split" or NeoX order of Hugging Face and MLC).

use serde_json::Value;

use crate::{DecoderConfig, Error, Result, decoder_config::ConfigJson};

/// How the frequencies are changed to reach beyond the context of pre-training.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Llama 3.1: low frequencies are divided by `factor`, high ones kept, those between blended.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Wavelengths above `original_max_position_embeddings / low_freq_factor` are divided.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_position_embeddings / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Context of pre-training.
        original_max_position_embeddings: usize,
    },
    /// All positions divided by `factor`.
    Linear {
        /// Divisor of all frequencies.
        factor: f64,
    },
}

impl RopeScaling {
    /// Reads `rope_scaling`, or transformers 5's `rope_parameters`. `Ok(None)` for the plain rotation.
    pub fn from_json(config: &ConfigJson, scaling: &Value) -> Result<Option<RopeScaling>> {
        let inner = ConfigJson { file: format!("{}: rope_scaling", config.file), value: scaling.clone() };
        let kind = inner.str("rope_type").or_else(|_| inner.str("type"))?;
        match kind {
            "default" => Ok(None),
            "linear" => Ok(Some(RopeScaling::Linear { factor: inner.f64("factor")? })),
            "llama3" => Ok(Some(RopeScaling::Llama3 {
                factor: inner.f64("factor")?,
                low_freq_factor: inner.f64("low_freq_factor")?,
                high_freq_factor: inner.f64("high_freq_factor")?,
                original_max_position_embeddings: inner.usize("original_max_position_embeddings")?,
            })),
            other => Err(Error::BadField {
                file: inner.file.clone(),
                field: "rope_type".into(),
                expected: "`default`, `linear` or `llama3`".into(),
                found: other.into(),
            }),
        }
    }
}

/// Angle per position of each of the `head_dim / 2` pairs, in f32 as transformers computes it.
pub fn inverse_frequencies(config: &DecoderConfig) -> Vec<f32> {
    let half = config.head_dim / 2;
    (0..half)
        .map(|i| {
            let exponent = (2 * i) as f32 / config.head_dim as f32;
            let freq = 1.0 / (config.rope_theta as f32).powf(exponent);
            match &config.rope_scaling {
                None => freq,
                Some(RopeScaling::Linear { factor }) => freq / *factor as f32,
                Some(RopeScaling::Llama3 {
                    factor,
                    low_freq_factor,
                    high_freq_factor,
                    original_max_position_embeddings,
                }) => {
                    let original = *original_max_position_embeddings as f32;
                    let (factor, low, high) = (*factor as f32, *low_freq_factor as f32, *high_freq_factor as f32);
                    let wavelength = 2.0 * std::f32::consts::PI / freq;
                    if wavelength > original / low {
                        freq / factor
                    } else if wavelength < original / high {
                        freq
                    } else {
                        let smooth = (original / wavelength - low) / (high - low);
                        (1.0 - smooth) * freq / factor + smooth * freq
                    }
                }
            }
        })
        .collect()
}

/// `[positions, head_dim / 2, 2]`: cosine and sine of each pair's angle at each position.
///
/// A table, because WGSL promises no accuracy for the cosine of a large argument.
pub fn cos_sin_table(config: &DecoderConfig, positions: usize) -> Vec<f32> {
    let frequencies = inverse_frequencies(config);
    let mut table = Vec::with_capacity(positions * frequencies.len() * 2);
    for position in 0..positions {
        for &freq in &frequencies {
            let (sin, cos) = (position as f32 * freq).sin_cos();
            table.extend([cos, sin]);
        }
    }
    table
}
