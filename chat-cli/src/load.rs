//! From the flags to a model that answers: opens it, picks the device, loads.

use std::path::PathBuf;
use std::time::Duration;

use chat_cli::{DeviceInfo, shapes};
use infer_core::{
    CacheFolder, Device, DeviceChoice, Engine, Gpu, KvDtype, LoadOptions, LoadedModel, OpenOptions, Tokenizer, Tuning,
    block_on,
    ops::candle::{CpuOptions, CpuWeights},
};
use model_format::{DecoderConfig, DirFiles, ModelFiles, QuantFormat};
use model_hub::{HubConfig, Model};

use crate::arguments::{Cache, ChatArguments, KernelArguments, Products, SubjectArguments};
use crate::engine::EngineAssistant;
use crate::progress::Bars;
use crate::terminal::Interrupt;
use crate::threads;

/// `--device` leads to the CPU where kernels are to be checked.
#[derive(Debug, thiserror::Error)]
#[error("the CPU has no kernels to check")]
pub struct NoKernels;

impl NoKernels {
    pub fn hint(&self) -> String {
        "`chat-cli devices` lists what else there is; `--device gpu` takes a software device too".into()
    }
}

/// Every device but the CPU.
pub fn devices() -> Vec<DeviceInfo> {
    block_on(Gpu::adapters()).into_iter().map(DeviceInfo::from).collect()
}

/// Loads the model that the flags name, with its text side.
pub fn load(arguments: &ChatArguments, interrupt: &Interrupt) -> anyhow::Result<EngineAssistant> {
    let mut bars = Bars::new(arguments.quiet);
    let place = Place::of(&arguments.device, &arguments.kernels)?;
    let model = open(&arguments.model, &mut bars)?;
    let kinds = Kinds::new(arguments.cache, arguments.cpu_weights);
    let (device, name) = place.open(kinds, &bars)?;
    let options = place.options(arguments.context, arguments.memory, &device)?;
    let mut engine = match &model {
        Model::Checkpoint(checkpoint) => block_on(Engine::load_checkpoint(&**checkpoint, device, &options, &mut bars))?,
        Model::Mlc(folder) => block_on(Engine::load_mlc(&DirFiles::new(folder), device, &options, &mut bars))?,
    };
    bars.clear();
    if let Some(template) = engine.template() {
        template.set_reads_control_tokens(arguments.control_tokens);
    }
    // The same room as before, whatever fits now.
    let options = LoadOptions { context: Some(engine.context()), ..options };
    let mut bars = Bars::new(true);
    let reload = move || {
        let (device, _) = place.open(kinds, &bars)?;
        load_onto(&model, device, &options, &mut bars)
    };
    Ok(EngineAssistant::new(engine, name, interrupt.clone(), Box::new(reload)))
}

/// What a model's name stands for, fetched where need be.
pub fn open(name: &str, bars: &mut Bars) -> anyhow::Result<Model> {
    let hub = HubConfig::from_vars(|name| std::env::var(name).ok())?;
    Ok(model_hub::open(name, &hub, bars)?)
}

/// Where a model's weights come from.
pub enum Weights {
    /// Its files.
    Files(Model),
    /// Made up, of a shape.
    Random(DecoderConfig, &'static QuantFormat),
}

impl Weights {
    /// Those of a model, or of a shape in a format; with what to call them.
    pub fn of(subject: &SubjectArguments, bars: &mut Bars) -> anyhow::Result<(String, Weights)> {
        if let Some(model) = &subject.model {
            return Ok((model.clone(), Weights::Files(open(model, bars)?)));
        }
        let shape = subject.shape.as_deref().expect("a model or a shape");
        let format = QuantFormat::by_name(&subject.format)?;
        Ok((format!("{shape} {}", format.name), Weights::Random(shapes::by_name(shape)?, format)))
    }
}

/// A model without its text side, with room for texts of `context` tokens; and the name of its device.
pub fn load_model(
    weights: &Weights,
    place: &Place,
    kinds: Kinds,
    context: usize,
    bars: &mut Bars,
) -> anyhow::Result<(LoadedModel, String)> {
    let (device, name) = place.open(kinds, bars)?;
    let options = place.options(Some(context), None, &device)?;
    let loaded = match weights {
        Weights::Files(model) => load_onto(model, device, &options, bars)?,
        Weights::Random(config, format) => block_on(LoadedModel::load_random(config, format, device, &options, bars))?,
    };
    bars.clear();
    Ok((loaded, name))
}

fn load_onto(model: &Model, device: Device, options: &LoadOptions, bars: &mut Bars) -> anyhow::Result<LoadedModel> {
    Ok(match model {
        Model::Checkpoint(checkpoint) => block_on(LoadedModel::load_checkpoint(&**checkpoint, device, options, bars))?,
        Model::Mlc(folder) => block_on(LoadedModel::load_mlc(&DirFiles::new(folder), device, options, bars))?,
    })
}

/// A model's tokenizer.
pub fn tokenizer(model: &Model) -> anyhow::Result<Tokenizer> {
    Ok(match model {
        Model::Checkpoint(checkpoint) => Tokenizer::from_files(&checkpoint.companion_files()?, &checkpoint.location())?,
        Model::Mlc(folder) => {
            let files = DirFiles::new(folder);
            Tokenizer::from_files(&block_on(Engine::text_files(&files))?, &files.location())?
        }
    })
}

/// In which number types a model runs.
#[derive(Clone, Copy)]
pub struct Kinds {
    /// Of the cache; `None`: as is best for the device.
    cache: Option<KvDtype>,
    /// How the CPU holds matrices in codes.
    pub cpu_weights: CpuWeights,
}

impl Kinds {
    pub fn new(cache: Option<Cache>, cpu_weights: Products) -> Kinds {
        Kinds { cache: cache.map(KvDtype::from), cpu_weights: cpu_weights.into() }
    }
}

/// Where to run, and how.
pub struct Place {
    choice: DeviceChoice,
    open: OpenOptions,
    tuning: Tuning,
    tuning_budget: Option<Duration>,
}

impl Place {
    /// What `--device` means on this machine, opened with matrix units or without. Says at once if there is no such device.
    pub fn of(choice: &DeviceChoice, kernels: &KernelArguments) -> anyhow::Result<Place> {
        if *choice != DeviceChoice::Cpu {
            choice.pick(&block_on(Gpu::adapters()))?;
        }
        let open = OpenOptions { cooperative_matrix: !kernels.no_cooperative_matrix, ..OpenOptions::default() };
        let tuning = if kernels.no_tune { Tuning::Presets } else { Tuning::FirstUse };
        Ok(Place { choice: choice.clone(), open, tuning, tuning_budget: None })
    }

    /// The same, tuned like this, in no more than so much time.
    pub fn tuned(self, tuning: Tuning, budget: Duration) -> Place {
        Place { tuning, tuning_budget: Some(budget), ..self }
    }

    /// How to load onto `device`. `memory`: GiB that may be taken.
    fn options(&self, context: Option<usize>, memory: Option<f64>, device: &Device) -> anyhow::Result<LoadOptions> {
        let allowed = memory.map(|gib| (gib * f64::from(1 << 30)) as u64);
        // A GPU's driver tells for itself.
        let of_machine = match device {
            Device::Cpu(_) => available_memory(),
            Device::Gpu(..) => None,
        };
        Ok(LoadOptions {
            context,
            memory: allowed.or(of_machine),
            device_cache: cache_folder().map(CacheFolder::at),
            tuning: self.tuning,
            tuning_budget: self.tuning_budget,
        })
    }

    /// The GPU that is meant, and what to call it.
    pub fn open_gpu(&self) -> anyhow::Result<(Gpu, String)> {
        let opened = block_on(self.choice.open(self.open))?;
        let gpu = opened.gpu.ok_or(NoKernels)?;
        gpu.compile_on(threads::spawn, threads::count());
        Ok((gpu, opened.name))
    }

    /// The device and what to call it.
    fn open(&self, kinds: Kinds, bars: &Bars) -> anyhow::Result<(Device, String)> {
        let opened = block_on(self.choice.open(self.open))?;
        opened.note.iter().for_each(|note| bars.say(note));
        let device = match opened.gpu {
            Some(gpu) => {
                gpu.compile_on(threads::spawn, threads::count());
                Device::Gpu(gpu, kinds.cache.unwrap_or(KvDtype::F16))
            }
            None => Device::Cpu(CpuOptions { weights: kinds.cpu_weights, kv: kinds.cache.unwrap_or(KvDtype::F32) }),
        };
        Ok((device, opened.name))
    }
}

/// Bytes of memory that programs can have, where the system tells.
fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
}

/// Where programs keep what can be found out again.
fn cache_folder() -> Option<PathBuf> {
    let folder = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = || Some(folder("HOME").or_else(|| folder("USERPROFILE"))?.join(".cache"));
    Some(folder("XDG_CACHE_HOME").or_else(home)?.join("chat-cli"))
}
