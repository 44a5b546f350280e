//! [`RopeScaling`]: how a configuration changes the rotary frequencies for long contexts.

use serde_json::Value;

use crate::{Error, Result, config_json::ConfigJson};

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
