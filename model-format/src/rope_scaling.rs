//! [`RopeScaling`]: scaling of the RoPE frequencies for long contexts.

use serde_json::Value;

use crate::{Error, Result, config_json::ConfigJson};

/// Scaling of the RoPE frequencies beyond the context of pre-training.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Llama 3.1: divides low frequencies by `factor`, keeps high ones, and blends in between.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Wavelengths above `original_max_position_embeddings / low_freq_factor` count as low frequencies.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_position_embeddings / high_freq_factor` count as high frequencies.
        high_freq_factor: f64,
        /// Context of pre-training, in tokens.
        original_max_position_embeddings: usize,
    },
    /// Divides all frequencies by `factor`.
    Linear {
        /// Divisor of all frequencies.
        factor: f64,
    },
    /// Phi 3: each frequency has its own divisor, with separate lists for short and long texts. Each list has
    /// `rotary_dim / 2` divisors.
    LongRope {
        /// Divisors for texts up to the context of pre-training.
        short_factor: Vec<f64>,
        /// Divisors for longer texts.
        long_factor: Vec<f64>,
        /// Context of pre-training, in tokens.
        original_max_position_embeddings: usize,
        /// Factor of the cosines and sines.
        attention_factor: f64,
    },
}

impl RopeScaling {
    /// Reads `rope_scaling`, or `rope_parameters` of transformers 5. `Ok(None)` for RoPE without scaling.
    ///
    /// `scaling` is that field of `config`. The last argument has `max_position_embeddings` and the number of rotated
    /// elements in a head.
    ///
    /// # Errors
    ///
    /// An error for an unsupported type, and for a missing or invalid field.
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
            // `su` is the older name.
            "longrope" | "su" => {
                let original = match inner.opt_usize("original_max_position_embeddings")? {
                    Some(original) => original,
                    None => config.usize("original_max_position_embeddings")?,
                };
                if original < 2 {
                    return Err(inner.bad("original_max_position_embeddings", "at least 2", &original.into()));
                }
                let stretch = inner.opt_f64("factor")?.unwrap_or(positions as f64 / original as f64);
                let default = if stretch <= 1.0 { 1.0 } else { (1.0 + stretch.ln() / (original as f64).ln()).sqrt() };
                Ok(Some(RopeScaling::LongRope {
                    short_factor: factors(&inner, "short_factor", rotary_dim / 2)?,
                    long_factor: factors(&inner, "long_factor", rotary_dim / 2)?,
                    original_max_position_embeddings: original,
                    attention_factor: inner.opt_f64("attention_factor")?.unwrap_or(default),
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
            expected: format!("a list of {count} positive numbers, one per pair of rotated elements"),
            found: format!("{} positive numbers in {} entries", values.len(), list.len()),
        });
    }
    Ok(values)
}
