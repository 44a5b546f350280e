//! A model opened by any name `model-hub` knows, or made up from a shape, and loaded onto a device: no template, no
//! conversation.

use std::path::PathBuf;

use anyhow::Result;
use infer_core::{
    Gpu, KvDtype, OpenOptions, block_on,
    model::{Parts, Session, load_checkpoint, load_mlc, load_random},
    ops::{
        Choose, Ops,
        candle::{CandleOps, CpuWeights},
        gpu::GpuOps,
    },
};
use model_format::{ChatConfig, Checkpoint, DecoderConfig, DirFiles, QuantFormat};
use model_hub::{HubConfig, Model};

/// What is to be loaded.
pub enum Target {
    /// A model's files.
    Model(Opened),
    /// Random weights of a shape.
    Shape(DecoderConfig, &'static QuantFormat),
}

/// A model's files.
pub enum Opened {
    /// Float or GPTQ.
    Checkpoint(Box<dyn Checkpoint>),
    /// An MLC folder.
    Mlc(PathBuf),
}

/// A model on its device.
pub enum Loaded {
    /// In f32 through candle.
    Cpu(Session<CandleOps>, DecoderConfig),
    /// On a GPU.
    Gpu(Session<GpuOps>, DecoderConfig, Gpu),
}

/// Opens what `name` stands for, fetching it where need be.
pub fn open(name: &str) -> Result<Opened> {
    let hub = HubConfig::from_vars(|name| std::env::var(name).ok())?;
    Ok(match model_hub::open(name, &hub, &mut ())? {
        Model::Checkpoint(checkpoint) => Opened::Checkpoint(checkpoint),
        Model::Mlc(folder) => Opened::Mlc(folder),
    })
}

impl Target {
    /// Loads onto `device` (`cpu`, `auto`, a number or a name; a GPU is opened with `options`) with room for `context`
    /// tokens.
    pub fn load_session(&self, device: &str, options: OpenOptions, kv: KvDtype, context: usize) -> Result<Loaded> {
        if device == "cpu" {
            let (session, config) = self.session(CandleOps::new(CpuWeights::Exact), context)?;
            return Ok(Loaded::Cpu(session, config));
        }
        let selection = device.parse().expect("any text is a selection");
        let gpu = block_on(Gpu::open(&selection, options))?;
        let (session, config) = self.session(GpuOps::new(gpu.clone(), kv), context)?;
        Ok(Loaded::Gpu(session, config, gpu))
    }

    fn session<O: Choose>(&self, mut ops: O, context: usize) -> Result<(Session<O>, DecoderConfig)> {
        let (config, parts) = self.parts(&mut ops)?;
        Ok((Session::new(ops, &config, parts, context)?, config))
    }

    fn parts<O: Ops>(&self, ops: &mut O) -> Result<(DecoderConfig, Parts<O>)> {
        Ok(match self {
            Target::Shape(config, format) => (config.clone(), load_random(ops, config, format, 0, &mut ())?),
            Target::Model(Opened::Checkpoint(checkpoint)) => {
                let config = DecoderConfig::from_hf(checkpoint.config_json())?;
                let parts = load_checkpoint(ops, &config, checkpoint.as_ref(), None, &mut ())?;
                (config, parts)
            }
            Target::Model(Opened::Mlc(folder)) => {
                let files = DirFiles::new(folder);
                let chat_config = block_on(ChatConfig::read(&files))?;
                let config = DecoderConfig::from_mlc(&chat_config)?;
                let format = QuantFormat::by_name(&chat_config.quantization)?;
                let parts = block_on(load_mlc(ops, &config, format, &files, &mut ()))?;
                (config, parts)
            }
        })
    }
}
