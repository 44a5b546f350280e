//! [`Estimate`]: what a run will take, before it begins. [`Timings`]: what it took.

use std::time::Duration;

use model_format::DecoderConfig;
use serde::Serialize;

use crate::{Result, Settings, on_device::PIECE_BYTES, quantized_params};

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
    /// Waiting for what is told of each matrix, and for the journal: most of that is done beside the rest.
    pub report: Duration,
}

impl Timings {
    /// All of it.
    pub fn total(&self) -> Duration {
        self.forward + self.hessian + self.factoring + self.quantization + self.report
    }
}

/// What a run takes of memories, in bytes.
pub(crate) struct Memory {
    pub(crate) host: u64,
    pub(crate) device: u64,
    /// For activations between two passes, on the device.
    pub(crate) room: usize,
    /// Whether there is room for the inputs of down too, beside the residual streams.
    pub(crate) keeps_inputs: bool,
}

/// Bytes for activations on a device that does not say what it has.
pub(crate) const UNKNOWN_MEMORY: usize = 4 << 30;

/// `on_host`: the device has no memory of its own. `of_device`: what it has, where that is known.
pub(crate) fn memory(
    config: &DecoderConfig,
    tokens: usize,
    batch_tokens: usize,
    settings: &Settings,
    on_host: bool,
    of_device: Option<u64>,
) -> Result<Memory> {
    let streams = settings.streams() as u64;
    let (hidden, inner) = (config.hidden_size as u64, config.intermediate_size as u64);
    let floats = size_of::<f32>() as u64;
    let weights = (config.qkv_size() as u64 + 3 * inner + hidden) * hidden * floats;
    let layer = weights * streams + batch_tokens as u64 * 4 * inner * floats;
    let table = config.vocab_size as u64 * hidden * floats;
    // Sums and what f32 lost of them, then what they come to; or factors and some rows that are solved.
    let squares = 6 * inner * inner * floats;
    let fixed = squares + layer.max(table).max(7 * PIECE_BYTES as u64);
    let room = settings.activation_memory.unwrap_or_else(|| match of_device {
        // Not all of it is for whoever comes first.
        Some(bytes) => (bytes / 10 * 9).saturating_sub(fixed) as usize,
        None => UNKNOWN_MEMORY,
    });

    let residual = tokens as u64 * hidden * floats * streams;
    let inputs = tokens as u64 * inner * floats * streams;
    let keeps_inputs = residual + inputs <= room as u64;
    let kept = if keeps_inputs { residual + inputs } else { residual };
    let mut solving = 0;
    for (param, _) in quantized_params(config, settings)? {
        let (rows, cols) = (param.shape[0] as u64, param.shape[1] as u64);
        let layer_only = if param.role.layer().is_some() { 1 } else { 0 };
        // Values, codes and what they stand for; the Hessian, the drift, their factor and correction.
        let bytes = rows * cols * (3 * floats + 1) + cols * cols * 8 * 5;
        let streams = if on_host { kept + layer } else { kept.saturating_sub(room as u64) };
        solving = solving.max(bytes + layer_only * streams);
    }
    let device = if on_host { 0 } else { kept.min(room as u64) + fixed };
    Ok(Memory { host: solving, device, room, keeps_inputs })
}
