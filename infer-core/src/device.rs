//! [`Device`]: what a model is loaded onto.

use webgpu_kernels::{Gpu, KvDtype};

use crate::memory::Room;

#[cfg(feature = "native")]
use crate::ops::candle::{CpuOptions, CpuWeights};

/// What a model is loaded onto.
pub enum Device {
    /// The CPU, through candle.
    #[cfg(feature = "native")]
    Cpu(CpuOptions),
    /// A GPU, with caches of this number type.
    Gpu(Gpu, KvDtype),
}

/// How a device holds a matrix in codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Codes {
    /// As values in f32.
    #[cfg(feature = "native")]
    Widened,
    /// In codes, rows side by side.
    #[cfg(feature = "native")]
    Interleaved,
    /// In codes, as they are.
    Kept,
}

impl Device {
    /// How matrices in codes are held.
    pub(crate) fn codes(&self) -> Codes {
        match self {
            #[cfg(feature = "native")]
            Device::Cpu(CpuOptions { weights: CpuWeights::Exact, .. }) => Codes::Widened,
            #[cfg(feature = "native")]
            Device::Cpu(CpuOptions { weights: CpuWeights::Integer, .. }) => Codes::Interleaved,
            Device::Gpu(..) => Codes::Kept,
        }
    }

    /// How the cache stores keys and values.
    pub(crate) fn kv_dtype(&self) -> KvDtype {
        match self {
            #[cfg(feature = "native")]
            Device::Cpu(options) => options.kv,
            Device::Gpu(_, kv) => *kv,
        }
    }

    /// The memory that a model may take, where the caller does not say how many bytes, if that is known.
    pub(crate) fn room(&self, allowed: Option<u64>) -> Option<Room> {
        let (free, total) = match self {
            #[cfg(feature = "native")]
            Device::Cpu(_) => (None, None),
            Device::Gpu(gpu, _) => (free_memory(gpu), gpu.summary().memory),
        };
        match allowed {
            Some(bytes) => Some(Room { bytes, total: None }),
            None => free.map(|bytes| Room { bytes, total }),
        }
    }
}

/// What is free on a GPU, less what the driver takes for pipelines and the like. Where the driver does not tell, most of what this
/// program does not hold.
fn free_memory(gpu: &Gpu) -> Option<u64> {
    let told = gpu.free_memory().map(|free| free - free / 50);
    told.or_else(|| Some((gpu.summary().memory? / 10 * 9).saturating_sub(gpu.bytes_in_use())))
}

/// The machine's first GPU, for tests. Without one: skipped, with the reason.
#[cfg(all(test, feature = "native"))]
pub(crate) fn gpu_for_test(options: webgpu_kernels::gpu::OpenOptions) -> Option<Gpu> {
    match crate::block_on(Gpu::open(&Default::default(), options)) {
        Ok(gpu) => Some(gpu),
        Err(error) => {
            assert!(std::env::var_os("REQUIRE_GPU").is_none(), "no GPU: {error}");
            eprintln!("skipped: {error}");
            None
        }
    }
}
