//! [`Device`]: what a model is loaded onto.

use webgpu_kernels::{Gpu, KvDtype};

#[cfg(feature = "native")]
use crate::ops::candle::CpuWeights;

/// What a model is loaded onto.
pub enum Device {
    /// The CPU, through candle.
    #[cfg(feature = "native")]
    Cpu(CpuWeights),
    /// A GPU, with caches of this number type.
    Gpu(Gpu, KvDtype),
}
