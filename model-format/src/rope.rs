//! Rotary position embedding (RoPE): frequencies of a configuration, and the table of cosines and sines.
//!
//! The rotation pairs element `i` with `i + rotary_dim / 2` (the "half-split" or NeoX order of Hugging Face and MLC).

use crate::{DecoderConfig, rope_scaling::RopeScaling};

/// Angle per position of each pair, `rotary_dim / 2` values in radians, for texts of up to `positions` tokens. Computed
/// in f32, like in transformers.
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

/// Table `[positions, rotary_dim / 2, 2]`: cosine and sine of each pair's angle at each position, multiplied by
/// LongRope's attention factor.
///
/// Kernels use a table because WGSL guarantees no accuracy for the cosine of a large argument.
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
