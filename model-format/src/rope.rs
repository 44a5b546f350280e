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
    /// Phi 3: every frequency has a divisor of its own, from one list for short texts and from another for long ones.
    LongRope {
        /// Divisors where the text is no longer than the context of pre-training.
        short_factor: Vec<f64>,
        /// Divisors for longer texts.
        long_factor: Vec<f64>,
        /// Context of pre-training.
        original_max_position_embeddings: usize,
        /// What cosines and sines are multiplied by.
        attention_factor: f64,
    },
}

impl RopeScaling {
    /// Reads `rope_scaling`, or transformers 5's `rope_parameters`. `Ok(None)` for the plain rotation.
    ///
    /// `positions` and `rotary_dim` are the configuration's.
    pub fn from_json(
        config: &ConfigJson,
        scaling: &Value,
        (positions, rotary_dim): (usize, usize),
    ) -> Result<Option<RopeScaling>> {
        let inner = ConfigJson { file: format!("{}: rope_scaling", config.file), value: scaling.clone() };
        let kind = inner.str("rope_type").or_else(|_| inner.str("type"))?;
        let positive = |name: &str| match inner.f64(name)? {
            value if value > 0.0 => Ok(value),
            value => Err(inner.bad(name, "a positive number", &value.into())),
        };
        match kind {
            "default" => Ok(None),
            "linear" => Ok(Some(RopeScaling::Linear { factor: positive("factor")? })),
            "llama3" => Ok(Some(RopeScaling::Llama3 {
                factor: positive("factor")?,
                low_freq_factor: positive("low_freq_factor")?,
                high_freq_factor: positive("high_freq_factor")?,
                original_max_position_embeddings: inner.usize("original_max_position_embeddings")?,
            })),
            // Its older name.
            "longrope" | "su" => {
                let original = match inner.opt_usize("original_max_position_embeddings")? {
                    Some(original) => original,
                    None => config.usize("original_max_position_embeddings")?,
                };
                if original < 2 {
                    return Err(inner.bad("original_max_position_embeddings", "at least 2", &original.into()));
                }
                let stretch = inner.opt_f64("factor")?.unwrap_or(positions as f64 / original as f64);
                let own = if stretch <= 1.0 { 1.0 } else { (1.0 + stretch.ln() / (original as f64).ln()).sqrt() };
                Ok(Some(RopeScaling::LongRope {
                    short_factor: factors(&inner, "short_factor", rotary_dim / 2)?,
                    long_factor: factors(&inner, "long_factor", rotary_dim / 2)?,
                    original_max_position_embeddings: original,
                    attention_factor: inner.opt_f64("attention_factor")?.unwrap_or(own),
                }))
            }
            other => Err(Error::BadField {
                file: inner.file.clone(),
                field: "rope_type".into(),
                expected: "`default`, `linear`, `llama3` or `longrope`".into(),
                found: other.into(),
            }),
        }
    }
}

/// A list of `count` divisors.
fn factors(scaling: &ConfigJson, name: &str, count: usize) -> Result<Vec<f64>> {
    let missing = || Error::MissingField { file: scaling.file.clone(), field: name.into() };
    let list = scaling.value.get(name).and_then(Value::as_array).ok_or_else(missing)?;
    let values: Vec<f64> = list.iter().filter_map(Value::as_f64).filter(|&factor| factor > 0.0).collect();
    if values.len() != count || list.len() != count {
        return Err(Error::BadField {
            file: scaling.file.clone(),
            field: name.into(),
            expected: format!("a list of {count} positive numbers, one per pair of elements that are rotated"),
            found: format!("{} of {} entries", values.len(), list.len()),
        });
    }
    Ok(values)
}

/// Angle per position of each of the `rotary_dim / 2` pairs, in f32 as transformers computes it, for texts of up to
/// `positions` tokens.
pub fn inverse_frequencies(config: &DecoderConfig, positions: usize) -> Vec<f32> {
    let half = config.rotary_dim / 2;
    (0..half)
        .map(|i| {
            let exponent = (2 * i) as f32 / config.rotary_dim as f32;
            let power = (config.rope_theta as f32).powf(exponent);
            let freq = 1.0 / power;
            match &config.rope_scaling {
                None => freq,
                Some(RopeScaling::LongRope { short_factor, long_factor, original_max_position_embeddings, .. }) => {
                    let is_long = positions > *original_max_position_embeddings;
                    1.0 / ((if is_long { long_factor } else { short_factor })[i] as f32 * power)
                }
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

/// `[positions, rotary_dim / 2, 2]`: cosine and sine of each pair's angle at each position.
///
/// A table, because WGSL promises no accuracy for the cosine of a large argument.
pub fn cos_sin_table(config: &DecoderConfig, positions: usize) -> Vec<f32> {
    let frequencies = inverse_frequencies(config, positions);
    let factor = match &config.rope_scaling {
        Some(RopeScaling::LongRope { attention_factor, .. }) => *attention_factor as f32,
        _ => 1.0,
    };
    let mut table = Vec::with_capacity(positions * frequencies.len() * 2);
    for position in 0..positions {
        for &freq in &frequencies {
            let (sin, cos) = (position as f32 * freq).sin_cos();
            table.extend([cos * factor, sin * factor]);
        }
    }
    table
}
