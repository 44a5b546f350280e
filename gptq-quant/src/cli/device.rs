//! Where calibration text is run: the CPU, or a GPU by `--device`.

use anyhow::Result;
use infer_core::{DeviceChoice, DeviceType, Gpu, OpenOptions, block_on};
use serde_json::{Value, json};

use super::Bars;

/// Operations on the device that was chosen.
pub enum Device {
    /// Through candle.
    Cpu,
    /// On a GPU.
    Gpu(Gpu),
}

impl Device {
    /// Opens what `--device` means. With `matrix_units` its products are in f16 where it has such, with sums in f32.
    pub fn open(choice: &DeviceChoice, matrix_units: bool, bars: &mut Bars) -> Result<Device> {
        let options = OpenOptions { cooperative_matrix: matrix_units, ..OpenOptions::default() };
        let opened = block_on(choice.open(options))?;
        if let Some(note) = opened.note {
            bars.line(&note);
        }
        Ok(opened.gpu.map_or(Device::Cpu, Device::Gpu))
    }

    /// What a result follows from, as far as the device goes.
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
