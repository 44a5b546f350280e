//! [`Memory`]: the memory plan of a run, known before it begins.

use model_format::DecoderConfig;

use crate::{
    calibrate::{DeviceFacts, PIECE_BYTES},
    error::Result,
    settings::{DEFAULT_ACTIVATION_MEMORY, Settings, quantized_params},
};

/// The memory plan of a run, in bytes.
pub(super) struct Memory {
    /// Peak host memory, without the model's files.
    pub(super) host: u64,
    /// Peak device memory; 0 if the device is the host.
    pub(super) device: u64,
    /// Room for activations between two passes, on the device.
    pub(super) activations: usize,
}

impl Memory {
    /// Plans a run on `tokens` calibration tokens, of which `batch_tokens` run at a time.
    pub(super) fn plan(
        config: &DecoderConfig,
        tokens: usize,
        batch_tokens: usize,
        settings: &Settings,
        device: DeviceFacts,
    ) -> Result<Memory> {
        let streams = settings.streams() as u64;
        let (hidden, inner) = (config.hidden_size as u64, config.intermediate_size as u64);
        let floats = size_of::<f32>() as u64;
        let weights = (config.qkv_size() as u64 + 3 * inner + hidden) * hidden * floats;
        let layer = weights * streams + batch_tokens as u64 * 4 * inner * floats;
        let table = config.vocab_size as u64 * hidden * floats;
        // Up to 6 matrices of `inner` x `inner`: first sums, their rounding errors and the joined results; later factors and
        // rows in work.
        let squares = 6 * inner * inner * floats;
        let fixed = squares + layer.max(table).max(7 * PIECE_BYTES as u64);
        let activations = settings.activation_memory.unwrap_or_else(|| match device.memory {
            // A tenth stays free for other programs.
            Some(bytes) => (bytes / 10 * 9).saturating_sub(fixed) as usize,
            None => DEFAULT_ACTIVATION_MEMORY,
        });

        let residual = tokens as u64 * hidden * floats * streams;
        // The inputs of `down_proj` are cached too if both fit.
        let with_inputs = residual + tokens as u64 * inner * floats * streams;
        let cached = if with_inputs <= activations as u64 { with_inputs } else { residual };
        let mut host = 0;
        for (param, _) in quantized_params(config, settings)? {
            let (rows, cols) = (param.shape[0] as u64, param.shape[1] as u64);
            // f32 weights, dequantized values and a copy, u8 codes; f64 Hessian, drift, factor, correction and a copy.
            let solving = rows * cols * (3 * floats + 1) + cols * cols * 8 * 5;
            let streams = match param.role.layer() {
                None => 0,
                Some(_) if device.is_host => cached + layer,
                Some(_) => cached.saturating_sub(activations as u64),
            };
            host = host.max(solving + streams);
        }
        let device = if device.is_host { 0 } else { cached.min(activations as u64) + fixed };
        Ok(Memory { host, device, activations })
    }
}
