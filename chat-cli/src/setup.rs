//! [`Setup`]: the device that a model is loaded onto, its number types, kernel tuning and memory.

use std::{path::PathBuf, time::Duration};

use infer_core::{
    CacheFolder, Device, DeviceChoice, Gpu, KvDtype, LoadOptions, OpenOptions, Tuning,
    ops::candle::{CpuOptions, CpuWeights},
};

use crate::{Error, Progress, Result};

/// Number types of a loaded model.
#[derive(Debug, Clone, Copy)]
pub struct NumberTypes {
    /// Of the cache; `None` selects f16 on a GPU and f32 on the CPU.
    pub cache: Option<KvDtype>,
    /// Of products with quantized matrices on the CPU.
    pub cpu_weights: CpuWeights,
}

/// Resources of the machine. The program finds them, because a library reads no environment.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Free memory in bytes, for models on the CPU; `None` if unknown.
    pub free_memory: Option<u64>,
    /// The folder for tuning results and kernel checks; `None` stores nothing.
    pub cache_folder: Option<PathBuf>,
    /// Runs a job that compiles kernels on its own thread.
    pub spawn: fn(Box<dyn FnOnce() + Send>),
    /// Jobs that run at a time.
    pub threads: usize,
}

/// The device that a model is loaded onto, and how.
#[derive(Debug, Clone)]
pub struct Setup {
    choice: DeviceChoice,
    open: OpenOptions,
    tuning: Tuning,
    tuning_budget: Option<Duration>,
    machine: Machine,
}

impl Setup {
    /// A setup for the device that `--device` selects. Errors: there is no such device.
    pub async fn new(choice: DeviceChoice, open: OpenOptions, tuning: Tuning, machine: Machine) -> Result<Setup> {
        if choice != DeviceChoice::Cpu {
            choice.pick(&Gpu::adapters().await)?;
        }
        Ok(Setup { choice, open, tuning, tuning_budget: None, machine })
    }

    /// The same setup with another time limit for tuning.
    pub fn with_tuning_budget(self, budget: Duration) -> Setup {
        Setup { tuning_budget: Some(budget), ..self }
    }

    /// Options to load a model onto `device`. `context` is in tokens, `memory` in bytes; `None` selects the defaults.
    pub fn load_options(&self, context: Option<usize>, memory: Option<u64>, device: &Device) -> LoadOptions {
        // The driver of a GPU reports its free memory itself.
        let free_memory = match device {
            Device::Cpu(_) => self.machine.free_memory,
            Device::Gpu(..) => None,
        };
        LoadOptions {
            context,
            conversations: None,
            memory: memory.or(free_memory),
            device_cache: self.machine.cache_folder.clone().map(CacheFolder::at),
            tuning: self.tuning,
            tuning_budget: self.tuning_budget,
        }
    }

    /// Opens the GPU; returns it with its name. Errors: the device is the CPU.
    pub async fn open_gpu(&self) -> Result<(Gpu, String)> {
        let opened = self.choice.open(self.open).await?;
        let gpu = opened.gpu.ok_or(Error::NoKernels)?;
        gpu.compile_on(self.machine.spawn, self.machine.threads);
        Ok((gpu, opened.name))
    }

    /// Opens the device; returns it with its name.
    pub async fn open(&self, types: NumberTypes, progress: &mut dyn Progress) -> Result<(Device, String)> {
        let opened = self.choice.open(self.open).await?;
        opened.note.iter().for_each(|note| progress.message(note));
        let device = match opened.gpu {
            Some(gpu) => {
                gpu.compile_on(self.machine.spawn, self.machine.threads);
                Device::Gpu(gpu, types.cache.unwrap_or(KvDtype::F16))
            }
            None => Device::Cpu(CpuOptions { weights: types.cpu_weights, kv: types.cache.unwrap_or(KvDtype::F32) }),
        };
        Ok((device, opened.name))
    }
}
