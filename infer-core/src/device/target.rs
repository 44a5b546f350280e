//! [`Device`]: the CPU or an open GPU, onto which a model is loaded.

use webgpu_kernels::{Gpu, KvDtype};

#[cfg(feature = "native")]
use super::cpu_options::{CpuOptions, CpuWeights};
use crate::memory::Room;

/// The CPU or an open GPU, onto which a model is loaded.
pub enum Device {
    /// The CPU, through candle.
    #[cfg(feature = "native")]
    Cpu(CpuOptions),
    /// A GPU, and the number type of its KV caches.
    Gpu(Gpu, KvDtype),
}

/// Form in which a device stores quantized matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MatrixStorage {
    /// Dequantized to f32.
    #[cfg(feature = "native")]
    Dequantized,
    /// Codes, the rows of a strip interleaved for the CPU's integer dot products.
    #[cfg(feature = "native")]
    Interleaved,
    /// Codes and scales in the format's own layout.
    Packed,
}

impl Device {
    /// How this device stores quantized matrices.
    pub(crate) fn matrix_storage(&self) -> MatrixStorage {
        match self {
            #[cfg(feature = "native")]
            Device::Cpu(CpuOptions { weights: CpuWeights::Exact, .. }) => MatrixStorage::Dequantized,
            #[cfg(feature = "native")]
            Device::Cpu(CpuOptions { weights: CpuWeights::Integer, .. }) => MatrixStorage::Interleaved,
            Device::Gpu(..) => MatrixStorage::Packed,
        }
    }

    /// Number type of the KV cache.
    pub(crate) fn kv_dtype(&self) -> KvDtype {
        match self {
            #[cfg(feature = "native")]
            Device::Cpu(options) => options.kv,
            Device::Gpu(_, kv) => *kv,
        }
    }

    /// Memory that a model may use: `limit` bytes, or without a limit the device's free memory. `None` if it is unknown.
    pub(crate) fn room(&self, limit: Option<u64>) -> Option<Room> {
        let (free, total) = match self {
            #[cfg(feature = "native")]
            Device::Cpu(_) => (None, None),
            Device::Gpu(gpu, _) => (free_memory(gpu), gpu.summary().memory),
        };
        match limit {
            Some(bytes) => Some(Room { bytes, total: None }),
            None => free.map(|bytes| Room { bytes, total }),
        }
    }
}

/// Free memory of a GPU, minus 2 % for the driver's own allocations (pipelines, for example). If the driver does not report
/// free memory: 90 % of the total, minus the buffers of this process.
fn free_memory(gpu: &Gpu) -> Option<u64> {
    let reported = gpu.free_memory().map(|free| free - free / 50);
    reported.or_else(|| Some((gpu.summary().memory? / 10 * 9).saturating_sub(gpu.bytes_in_use())))
}
