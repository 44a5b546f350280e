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

impl Device {
    pub(crate) fn is_gpu(&self) -> bool {
        matches!(self, Device::Gpu(..))
    }

    /// How the cache stores keys and values.
    pub(crate) fn kv_dtype(&self) -> KvDtype {
        match self {
            #[cfg(feature = "native")]
            Device::Cpu(_) => KvDtype::F32,
            Device::Gpu(_, kv) => *kv,
        }
    }

    /// Bytes of memory that a model may take where the caller does not say, if that is known.
    pub(crate) fn memory(&self) -> Option<u64> {
        match self {
            #[cfg(feature = "native")]
            Device::Cpu(_) => None,
            Device::Gpu(gpu, _) => gpu.summary().memory.map(|memory| memory / 10 * 9),
        }
    }
}
