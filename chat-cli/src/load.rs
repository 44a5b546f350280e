//! From the flags to a model that answers: opens it, picks the device, loads.

use chat_cli::{DeviceInfo, device::Place};
use infer_core::{Device, Engine, LoadOptions, block_on};
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
    Vec::new()
}

/// Loads the model that the flags name.
pub fn load(arguments: &ChatArguments, interrupt: &Interrupt) -> anyhow::Result<EngineAssistant> {
    let place = arguments.device.pick(&devices()).map_err(NoSuchDevice)?;
    let mut bars = Bars::new(arguments.quiet);
    let hub = HubConfig::from_vars(|name| std::env::var(name).ok())?;
    let model = model_hub::open(&arguments.model, &hub, &mut bars)?;
    if let Place::Cpu(Some(why)) = &place {
        bars.say(why);
    }
    let (device, name) = open_device(&place)?;
    let options = LoadOptions { context: arguments.context };
    let engine = match model {
        Model::Checkpoint(checkpoint) => Engine::load_checkpoint(&*checkpoint, device, &options, &mut bars)?,
        Model::Mlc(folder) => block_on(Engine::load_mlc(&DirFiles::new(folder), device, &options, &mut bars))?,
    };
    bars.clear();
    Ok(EngineAssistant::new(engine, name, interrupt.clone()))
}

fn open_device(place: &Place) -> anyhow::Result<(Device, String)> {
    match place {
        Place::Cpu(_) => Ok((Device::Cpu(Default::default()), "the CPU".into())),
        Place::Device(_) => unreachable!("devices() lists none"),
    }
}
