//! [`Device`]: the CPU, or the GPU that `--device` selects, for calibration and measurement.

use anyhow::Result;
use infer_core::{DeviceChoice, DeviceType, Gpu, OpenOptions, block_on};
use serde_json::{Value, json};

use super::progress::RunProgress;

/// An open device.
pub enum Device {
    /// Through candle.
    Cpu,
    /// Through our kernels.
    Gpu(Gpu),
}

impl Device {
    /// Opens the device that `--device` selects. With `matrix_units`, products run in f16 on matrix units, with sums in f32,
    /// if the GPU has them.
    pub fn open(choice: &DeviceChoice, matrix_units: bool, progress: &RunProgress) -> Result<Device> {
        let options = OpenOptions { cooperative_matrix: matrix_units, ..OpenOptions::default() };
        let opened = block_on(choice.open(options))?;
        if let Some(note) = opened.note {
            progress.say(&note);
        }
        Ok(opened.gpu.map_or(Device::Cpu, Device::Gpu))
    }

    /// The device's part of a run's fingerprint: the facts that results depend on.
    pub fn description(&self) -> Value {
        match self {
            Device::Cpu => self.to_string().into(),
            Device::Gpu(gpu) => json!({
                "name": gpu.summary().name,
                "driver": gpu.summary().driver,
                "matrix_units": gpu.caps().cooperative_matrix,
            }),
        }
    }

    /// True for a software GPU, which runs on the CPU.
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

/// Evaluates `$call` with the `Ops` of the device, in f32.
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
