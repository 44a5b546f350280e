//! [`Estimate`]: what a run will take, before it begins. [`Timings`]: what it took.

use std::time::Duration;

use model_format::DecoderConfig;
use serde::Serialize;

use crate::{Result, Settings, quantized_params};

/// What a run will take.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// From the beginning of calibration to the last matrix.
    pub time: Duration,
    /// Bytes of the host's memory at the most, beside the model's files.
    pub host_memory: u64,
    /// Bytes of the device's, if it has its own.
    pub device_memory: u64,
}

/// What the parts of a run took, without those of a run before it that was interrupted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Timings {
    /// Running the model.
    pub forward: Duration,
    /// Adding up Hessians.
    pub hessian: Duration,
    /// Factors of Hessians.
    pub factoring: Duration,
    /// Codes and scales.
    pub quantization: Duration,
}

impl Timings {
    /// All of it.
    pub fn total(&self) -> Duration {
        self.forward + self.hessian + self.factoring + self.quantization
    }
}

/// Bytes on the host and on the device. `on_host`: the device has no memory of its own.
pub(crate) fn memory(
    config: &DecoderConfig,
    tokens: usize,
    batch_tokens: usize,
    settings: &Settings,
    on_host: bool,
) -> Result<(u64, u64)> {
    let streams = if settings.matrix.gptaq_alpha == 0.0 { 1 } else { 2 };
    let (hidden, inner) = (config.hidden_size as u64, config.intermediate_size as u64);
    let floats = size_of::<f32>() as u64;
    let residual = tokens as u64 * hidden * floats * streams;
    let inputs = tokens as u64 * inner * floats * streams;
    let room = settings.activation_memory as u64;
    let kept = if residual + inputs <= room { residual + inputs } else { residual };
    // Sums and their parts are as large again as the largest of them.
    let sums = 4 * 8 * inner * inner;
    let weights = (config.qkv_size() as u64 + 3 * inner + hidden) * hidden * floats;
    let batch = batch_tokens as u64 * 4 * inner * floats;
    let layer = weights * streams + batch;

    let mut solving = 0;
    for (param, _) in quantized_params(config, settings)? {
        let (rows, cols) = (param.shape[0] as u64, param.shape[1] as u64);
        let layer_only = if param.role.layer().is_some() { 1 } else { 0 };
        // Values, codes and what they stand for; the Hessian, the drift, their factor and correction.
        let bytes = rows * cols * (3 * floats + 1) + cols * cols * 8 * 5;
        let streams = if on_host { kept + layer } else { kept.saturating_sub(room) };
        solving = solving.max(bytes + layer_only * streams);
    }
    let on_device = if on_host { 0 } else { kept.min(room) + layer + sums };
    Ok((solving, on_device))
}
