//! [`CpuOptions`]: number types of the CPU backend.

use webgpu_kernels::KvDtype;

/// Storage of quantized matrices on the CPU, and arithmetic of their products. Other matrices are always f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CpuWeights {
    /// Dequantized to f32, multiplied in f32.
    #[default]
    Exact,
    /// Kept as codes. Activations are rounded to 8 bits with one scale per group; products are integer dot products. Uses
    /// less memory and is faster.
    Integer,
}

/// Number types of the CPU backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuOptions {
    /// Storage of quantized matrices.
    pub weights: CpuWeights,
    /// Number type of keys and values in the cache.
    pub kv: KvDtype,
}

impl Default for CpuOptions {
    /// The reference: everything in f32.
    fn default() -> CpuOptions {
        CpuOptions { weights: CpuWeights::Exact, kv: KvDtype::F32 }
    }
}
