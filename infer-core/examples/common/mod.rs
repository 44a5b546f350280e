//! Shared by the examples: the command line, the choice of the device, and loading a folder.

#![allow(dead_code, reason = "each example uses its part of this file")]

use std::{error::Error, path::Path};

use infer_core::{Device, DeviceChoice, Engine, KvDtype, LoadOptions, OpenOptions};
use model_format::{ChatConfig, DirFiles, ModelFiles, SafetensorsCheckpoint};

/// The arguments of the program, if there are at least `count`. Otherwise prints the usage line.
pub fn arguments(count: usize, usage: &str) -> Option<Vec<String>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.len() < count {
        eprintln!("error: too few arguments\n\nusage: {usage}");
        return None;
    }
    Some(arguments)
}

/// Opens the first GPU. Without a GPU, uses the CPU.
pub async fn device() -> Result<Device, infer_core::Error> {
    let opened = DeviceChoice::Auto.open(OpenOptions::default()).await?;
    eprintln!("device: {}", opened.name);
    Ok(match opened.gpu {
        Some(gpu) => Device::Gpu(gpu, KvDtype::F16),
        None => Device::Cpu(Default::default()),
    })
}

/// Loads an MLC folder or a Hugging Face folder.
pub async fn load(folder: &Path, device: Device) -> Result<Engine, Box<dyn Error>> {
    load_with(folder, device, &LoadOptions::default()).await
}

/// [`load`] with limits of memory and context.
pub async fn load_with(folder: &Path, device: Device, options: &LoadOptions) -> Result<Engine, Box<dyn Error>> {
    let files = DirFiles::new(folder);
    if files.exists(ChatConfig::FILE_NAME).await {
        return Ok(Engine::load_mlc(&files, device, options, &mut ()).await?);
    }
    let checkpoint = SafetensorsCheckpoint::open(folder)?;
    Ok(Engine::load_checkpoint(&checkpoint, device, options, &mut ()).await?)
}
