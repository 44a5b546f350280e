//! From the flags to a model that answers: opens it, picks the device, loads.

use chat_cli::{DeviceChoice, DeviceInfo, device::Place};
use infer_core::{Device, Engine, Gpu, KvDtype, LoadOptions, OpenOptions, Selection, block_on};
use model_format::DirFiles;
use model_hub::{HubConfig, Model};

use crate::arguments::ChatArguments;
use crate::engine::EngineAssistant;
use crate::progress::Bars;
use crate::terminal::Interrupt;

/// `--device` names what is not there.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NoSuchDevice(String);

impl NoSuchDevice {
    pub fn hint(&self) -> String {
        "`chat-cli devices` lists what there is; `--device cpu` always works".into()
    }
}

/// Every device but the CPU.
pub fn devices() -> Vec<DeviceInfo> {
    block_on(Gpu::adapters()).into_iter().map(DeviceInfo::from).collect()
}

/// Loads the model that the flags name.
pub fn load(arguments: &ChatArguments, interrupt: &Interrupt) -> anyhow::Result<EngineAssistant> {
    let devices = if arguments.device == DeviceChoice::Cpu { Vec::new() } else { devices() };
    let place = arguments.device.pick(&devices).map_err(NoSuchDevice)?;
    let mut bars = Bars::new(arguments.quiet);
    let hub = HubConfig::from_vars(|name| std::env::var(name).ok())?;
    let model = model_hub::open(&arguments.model, &hub, &mut bars)?;
    let (device, name) = open_device(&place, &devices, &arguments.device, &bars)?;
    let options = LoadOptions { context: arguments.context };
    let engine = match model {
        Model::Checkpoint(checkpoint) => Engine::load_checkpoint(&*checkpoint, device, &options, &mut bars)?,
        Model::Mlc(folder) => block_on(Engine::load_mlc(&DirFiles::new(folder), device, &options, &mut bars))?,
    };
    bars.clear();
    Ok(EngineAssistant::new(engine, name, interrupt.clone()))
}

/// The device and what to call it.
fn open_device(
    place: &Place,
    devices: &[DeviceInfo],
    choice: &DeviceChoice,
    bars: &Bars,
) -> anyhow::Result<(Device, String)> {
    let cpu = || (Device::Cpu(Default::default()), "the CPU".to_string());
    let index = match place {
        Place::Device(index) => *index,
        Place::Cpu(why) => {
            why.iter().for_each(|why| bars.say(why));
            return Ok(cpu());
        }
    };
    let name = devices[index].name.clone();
    match block_on(Gpu::open(&Selection::Index(index), OpenOptions::default())) {
        Ok(gpu) => Ok((Device::Gpu(gpu, KvDtype::default()), name)),
        Err(error) if *choice == DeviceChoice::Auto => {
            bars.say(&format!("`{name}` does not open ({error}), running on the CPU"));
            Ok(cpu())
        }
        Err(error) => Err(infer_core::Error::from(error).into()),
    }
}
