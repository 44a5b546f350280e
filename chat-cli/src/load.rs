//! From the flags to a model that answers: opens it, picks the device, loads.

use chat_cli::{DeviceChoice, DeviceInfo, device};
use infer_core::{Device, Engine, Gpu, KvDtype, LoadOptions, LoadedModel, OpenOptions, Selection, Tokenizer, block_on};
use model_format::{DirFiles, ModelFiles};
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

/// Loads the model that the flags name, with its text side.
pub fn load(arguments: &ChatArguments, interrupt: &Interrupt) -> anyhow::Result<EngineAssistant> {
    let mut bars = Bars::new(arguments.quiet);
    let place = Place::of(&arguments.device)?;
    let model = open(&arguments.model, &mut bars)?;
    let (device, name) = place.open(KvDtype::default(), &bars)?;
    let options = LoadOptions { context: arguments.context };
    let engine = match model {
        Model::Checkpoint(checkpoint) => Engine::load_checkpoint(&*checkpoint, device, &options, &mut bars)?,
        Model::Mlc(folder) => block_on(Engine::load_mlc(&DirFiles::new(folder), device, &options, &mut bars))?,
    };
    bars.clear();
    Ok(EngineAssistant::new(engine, name, interrupt.clone()))
}

/// What a model's name stands for, fetched where need be.
pub fn open(name: &str, bars: &mut Bars) -> anyhow::Result<Model> {
    let hub = HubConfig::from_vars(|name| std::env::var(name).ok())?;
    Ok(model_hub::open(name, &hub, bars)?)
}

/// A model without its text side, with room for texts of `context` tokens; and the name of its device.
pub fn load_model(
    model: &Model,
    place: &Place<'_>,
    kv: KvDtype,
    context: usize,
    bars: &mut Bars,
) -> anyhow::Result<(LoadedModel, String)> {
    let (device, name) = place.open(kv, bars)?;
    let options = LoadOptions { context: Some(context) };
    let loaded = match model {
        Model::Checkpoint(checkpoint) => LoadedModel::load_checkpoint(&**checkpoint, device, &options, bars)?,
        Model::Mlc(folder) => block_on(LoadedModel::load_mlc(&DirFiles::new(folder), device, &options, bars))?,
    };
    bars.clear();
    Ok((loaded, name))
}

/// A model's tokenizer.
pub fn tokenizer(model: &Model) -> anyhow::Result<Tokenizer> {
    const FILE: &str = "tokenizer.json";
    let (bytes, location) = match model {
        Model::Mlc(folder) => {
            let files = DirFiles::new(folder);
            let bytes = match block_on(files.exists(FILE)) {
                true => Some(block_on(files.read(FILE))?),
                false => None,
            };
            (bytes, files.location())
        }
        Model::Checkpoint(checkpoint) => {
            let files = checkpoint.companion_files()?;
            let bytes = files.into_iter().find_map(|(name, bytes)| (name == FILE).then_some(bytes));
            (bytes, checkpoint.location())
        }
    };
    let missing = || model_format::Error::MissingFile { file: FILE.into(), folder: location };
    Ok(Tokenizer::from_bytes(&bytes.ok_or_else(missing)?)?)
}

/// Where to run, and all there is to choose from.
pub struct Place<'a> {
    chosen: device::Place,
    devices: Vec<DeviceInfo>,
    choice: &'a DeviceChoice,
}

impl<'a> Place<'a> {
    /// What `--device` means on this machine.
    pub fn of(choice: &'a DeviceChoice) -> anyhow::Result<Place<'a>> {
        let devices = if *choice == DeviceChoice::Cpu { Vec::new() } else { devices() };
        let chosen = choice.pick(&devices).map_err(NoSuchDevice)?;
        Ok(Place { chosen, devices, choice })
    }

    /// The device and what to call it.
    fn open(&self, kv: KvDtype, bars: &Bars) -> anyhow::Result<(Device, String)> {
        let cpu = || (Device::Cpu(Default::default()), "the CPU".to_string());
        let index = match &self.chosen {
            device::Place::Device(index) => *index,
            device::Place::Cpu(why) => {
                why.iter().for_each(|why| bars.say(why));
                return Ok(cpu());
            }
        };
        let name = self.devices[index].name.clone();
        match block_on(Gpu::open(&Selection::Index(index), OpenOptions::default())) {
            Ok(gpu) => Ok((Device::Gpu(gpu, kv), name)),
            Err(error) if *self.choice == DeviceChoice::Auto => {
                bars.say(&format!("`{name}` does not open ({error}), running on the CPU"));
                Ok(cpu())
            }
            Err(error) => Err(infer_core::Error::from(error).into()),
        }
    }
}
