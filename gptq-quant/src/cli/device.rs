//! Where calibration text is run: the CPU, or a GPU by `--device`.

use anyhow::Result;
use infer_core::{DeviceType, Gpu, OpenOptions, Selection, block_on};

/// Operations on the device that was chosen.
pub enum Device {
    /// Through candle.
    Cpu,
    /// On a GPU.
    Gpu(Gpu),
}

impl Device {
    /// What `--device` means: `cpu`, `auto` (a GPU if there is one that is not played by the CPU), a number or a name.
    ///
    /// With `matrix_units` its products are in f16 where it has such, with sums in f32.
    pub fn open(choice: &str, matrix_units: bool) -> Result<Device> {
        let selection = if choice.eq_ignore_ascii_case("cpu") {
            return Ok(Device::Cpu);
        } else if choice.eq_ignore_ascii_case("auto") {
            let adapters = block_on(Gpu::adapters());
            match adapters.iter().position(|adapter| adapter.device_type != DeviceType::Cpu) {
                None => return Ok(Device::Cpu),
                Some(index) => Selection::Index(index),
            }
        } else {
            choice.parse().expect("any text is a selection")
        };
        let options = OpenOptions { cooperative_matrix: matrix_units, ..OpenOptions::default() };
        Ok(Device::Gpu(block_on(Gpu::open(&selection, options))?))
    }

    /// Whether it is a GPU that the CPU plays.
    pub fn is_software(&self) -> bool {
        matches!(self, Device::Gpu(gpu) if gpu.summary().device_type == DeviceType::Cpu)
    }
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Device::Cpu => f.write_str("the CPU"),
            Device::Gpu(gpu) if gpu.caps().cooperative_matrix => {
                write!(f, "{} with its matrix units", gpu.summary().name)
            }
            Device::Gpu(gpu) => f.write_str(&gpu.summary().name),
        }
    }
}

/// The same call with the operations of whichever device it is.
macro_rules! with_ops {
    ($device:expr, $ops:ident => $call:expr) => {
        match $device {
            Device::Cpu => {
                let $ops = infer_core::ops::candle::CandleOps::default();
                $call
            }
            Device::Gpu(gpu) => {
                let $ops = infer_core::ops::gpu::GpuOps::new(gpu.clone(), infer_core::KvDtype::F32);
                $call
            }
        }
    };
}
pub(super) use with_ops;
