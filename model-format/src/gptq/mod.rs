//! GPTQ checkpoints as AutoGPTQ, GPTQModel and vLLM read them: the layout of `qweight`, `qzeros`, `scales`, `g_idx`.
//!
//! `w[n, k] = (code[n, k] - zero[n, g]) * scale[n, g]` with `g = g_idx[k]`. `qweight` is `[K / 8, N]` (4 bits; the low
//! nibble is the lower k), `qzeros` `[groups, N / 8]`, `scales` `[groups, N]` f16, `g_idx` `[K]`. Version 1 (`gptq`)
//! stores zeros minus one, version 2 (`gptq_v2`) stores them as they are.

use half::f16;
use serde_json::{Map, Value};

use crate::{Checkpoint, Result};

/// `quantization_config` of config.json, which is also quantize_config.json.
#[derive(Debug, Clone, PartialEq)]
pub struct GptqConfig {
    /// Bits per code.
    pub bits: usize,
    /// Inputs per scale; `None` for the whole row (`-1` in the file).
    pub group_size: Option<usize>,
    /// Act-order: columns were quantized by falling Hessian diagonal.
    pub desc_act: bool,
    /// With act-order, scales belong to groups of the original order, so that `g_idx` stays `k / group_size`.
    pub static_groups: bool,
    /// Zero fixed in the middle of the codes.
    pub sym: bool,
    /// Share of the mean diagonal that was added to the Hessian's diagonal.
    pub damp_percent: f64,
    /// Whether zeros are stored as they are (`gptq_v2`) and not minus one.
    pub v2: bool,
    /// Whether lm_head is quantized too.
    pub lm_head: bool,
}

impl GptqConfig {
    /// Reads config.json's `quantization_config`; `Ok(None)` where there is none. Another `quant_method` is an error.
    pub fn from_config(config_json: &str) -> Result<Option<GptqConfig>> {
        let _ = config_json;
        todo!()
    }

    /// The object for `quantization_config` and quantize_config.json, in the words of AutoGPTQ.
    pub fn to_json(&self) -> Map<String, Value> {
        todo!()
    }
}

/// One quantized matrix, unpacked.
#[derive(Debug, Clone, PartialEq)]
pub struct GptqMatrix {
    /// Outputs, N.
    pub rows: usize,
    /// Inputs, K.
    pub cols: usize,
    /// `[rows, cols]`.
    pub codes: Vec<u8>,
    /// `[rows, groups]`.
    pub scales: Vec<f16>,
    /// `[rows, groups]`, the true zeros (8 for symmetric 4 bits).
    pub zeros: Vec<u8>,
    /// `[cols]`, the group of each input.
    pub g_idx: Vec<u32>,
}

impl GptqMatrix {
    /// Reads `MODULE.qweight`, `.qzeros`, `.scales`, `.g_idx` (absent: `k / group_size`). `Ok(None)` where the module is
    /// not quantized.
    pub fn read(checkpoint: &dyn Checkpoint, config: &GptqConfig, module: &str) -> Result<Option<GptqMatrix>> {
        let _ = (checkpoint, config, module);
        todo!()
    }

    /// The four tensors, named `MODULE.qweight` and so on, with shape and little-endian bytes, for a safetensors file.
    pub fn to_tensors(&self, config: &GptqConfig, module: &str) -> Vec<(String, crate::HostTensor<'static>)> {
        let _ = (config, module);
        todo!()
    }

    /// The values `[rows, cols]` in f32.
    pub fn dequantize(&self) -> Vec<f32> {
        todo!()
    }

    /// The same values in a group format, exactly; an error that says why where that cannot be.
    pub fn to_format(&self, format: &'static crate::QuantFormat, module: &str) -> Result<crate::QuantizedMatrix> {
        let _ = (format, module);
        todo!()
    }
}
