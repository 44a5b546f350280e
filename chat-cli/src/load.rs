//! From flags to a loaded model: opens its files, selects the device, loads.

use chat_cli::{DeviceInfo, Machine, NumberTypes, Setup, Weights, weights::load_files};
use command_line::{Bars, available_memory, cache_folder, hub_config, threads};
use infer_core::{DeviceChoice, Engine, Gpu, KvDtype, LoadOptions, LoadedModel, OpenOptions, Tuning, block_on};
use model_format::DirFiles;
use model_hub::Model;

use crate::arguments::{Cache, ChatArguments, KernelArguments, Products, SubjectArguments};
use crate::engine::EngineAssistant;
use crate::loading::Loading;
use crate::terminal::Interrupt;

/// Every device except the CPU.
pub fn devices() -> Vec<DeviceInfo> {
    block_on(Gpu::adapters()).into_iter().map(DeviceInfo::from).collect()
}

/// Loads the model that the flags name, with its tokenizer and chat template.
pub fn load(arguments: &ChatArguments, interrupt: &Interrupt) -> anyhow::Result<EngineAssistant> {
    let mut bars = Bars::quiet_if(arguments.quiet);
    let setup = setup(&arguments.device.device, &arguments.device.kernels)?;
    let model = open(&arguments.model, &mut bars)?;
    let types = number_types(arguments.device.cache, arguments.device.cpu_weights);
    let mut loading = Loading(&mut bars);
    let (device, name) = block_on(setup.open(types, &mut loading))?;
    let memory = arguments.memory.map(|gib| (gib * f64::from(1 << 30)) as u64);
    let options = setup.load_options(arguments.context, memory, &device);
    let mut engine = match &model {
        Model::Checkpoint(checkpoint) => {
            block_on(Engine::load_checkpoint(&**checkpoint, device, &options, &mut loading))?
        }
        Model::Mlc(folder) => block_on(Engine::load_mlc(&DirFiles::new(folder), device, &options, &mut loading))?,
    };
    bars.clear();
    if let Some(template) = engine.template() {
        template.set_reads_control_tokens(arguments.control_tokens);
    }
    // A reloaded model has the same context, even if less memory is free by then.
    let options = LoadOptions { context: Some(engine.context()), ..options };
    let reload = move || {
        let (device, _) = block_on(setup.open(types, &mut ()))?;
        Ok(block_on(load_files(&model, device, &options, &mut ()))?)
    };
    Ok(EngineAssistant::new(engine, name, interrupt.clone(), Box::new(reload)))
}

/// Opens the model of that name; downloads it first if necessary.
pub fn open(name: &str, bars: &mut Bars) -> anyhow::Result<Model> {
    Ok(model_hub::open(name, &hub_config()?, bars)?)
}

/// The weights of a model or a shape, with their name for reports.
pub fn weights(subject: &SubjectArguments, bars: &mut Bars) -> anyhow::Result<(String, Weights)> {
    if let Some(model) = &subject.model {
        return Ok((model.clone(), Weights::Files(open(model, bars)?)));
    }
    let shape = subject.shape.as_deref().expect("a model or a shape");
    Ok((format!("{shape} {}", subject.format), Weights::random(shape, &subject.format)?))
}

/// Loads a model without its tokenizer, with room for `context` tokens. Returns it with the name of its device.
pub fn load_model(
    weights: &Weights,
    setup: &Setup,
    types: NumberTypes,
    context: usize,
    bars: &mut Bars,
) -> anyhow::Result<(LoadedModel, String)> {
    let loaded = block_on(weights.load(setup, types, context, 1, &mut Loading(bars)))?;
    bars.clear();
    Ok(loaded)
}

/// The number types of the flags.
pub fn number_types(cache: Option<Cache>, cpu_weights: Products) -> NumberTypes {
    NumberTypes { cache: cache.map(KvDtype::from), cpu_weights: cpu_weights.into() }
}

/// The setup of the flags. Fails at once if there is no such device.
pub fn setup(choice: &DeviceChoice, kernels: &KernelArguments) -> anyhow::Result<Setup> {
    let tuning = if kernels.no_tune { Tuning::Presets } else { Tuning::FirstUse };
    tuned_setup(choice, kernels, tuning)
}

/// The same with another rule for tuning.
pub fn tuned_setup(choice: &DeviceChoice, kernels: &KernelArguments, tuning: Tuning) -> anyhow::Result<Setup> {
    let open = OpenOptions { cooperative_matrix: !kernels.no_cooperative_matrix, ..OpenOptions::default() };
    let machine = Machine {
        free_memory: available_memory(),
        cache_folder: cache_folder("chat-cli"),
        spawn: threads::spawn,
        threads: threads::count(),
    };
    Ok(block_on(Setup::new(choice.clone(), open, tuning, machine))?)
}
