//! No quantization: numbers of the model's dtype. For baselines, calibration, and everything that has no codes.

/// WGSL that reads f16 weights through the interface of the quantized ones.
pub const UNPACK_WGSL: &str = include_str!("unpack.wgsl");
