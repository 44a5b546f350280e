//! [`Weights`]: a model's files, or random numbers in the shape of a published model. [`Weights::load`] loads either.

use infer_core::{Device, Engine, LoadOptions, LoadedModel, Tokenizer};
use model_format::{DecoderConfig, DirFiles, ModelFiles, QuantFormat};
use model_hub::Model;

use crate::{NumberTypes, Progress, Result, Setup, shapes};

/// The weights of a model.
pub enum Weights {
    /// Read from files.
    Files(Model),
    /// Random, in a quantization format.
    Random(DecoderConfig, &'static QuantFormat),
}

impl Weights {
    /// Random weights of a published shape. Errors: there is no such shape, or no such format.
    pub fn random(shape: &str, format: &str) -> Result<Weights> {
        let format = QuantFormat::by_name(format).map_err(infer_core::Error::from)?;
        Ok(Weights::Random(shapes::by_name(shape)?, format))
    }

    /// Loads a model without its tokenizer, with room for `conversations` conversations of `context` tokens. Returns it with the
    /// name of its device.
    pub async fn load(
        &self,
        setup: &Setup,
        types: NumberTypes,
        context: usize,
        conversations: usize,
        progress: &mut dyn Progress,
    ) -> Result<(LoadedModel, String)> {
        let (device, name) = setup.open(types, progress).await?;
        let options = setup.load_options(Some(context), None, &device);
        let options = LoadOptions { conversations: Some(conversations), ..options };
        let loaded = match self {
            Weights::Files(model) => load_files(model, device, &options, progress).await?,
            Weights::Random(config, format) => {
                LoadedModel::load_random(config, format, device, &options, progress).await?
            }
        };
        Ok((loaded, name))
    }
}

/// Loads a model from its files, without its tokenizer.
pub async fn load_files(
    model: &Model,
    device: Device,
    options: &LoadOptions,
    progress: &mut dyn infer_core::Progress,
) -> infer_core::Result<LoadedModel> {
    match model {
        Model::Checkpoint(checkpoint) => LoadedModel::load_checkpoint(&**checkpoint, device, options, progress).await,
        Model::Mlc(folder) => LoadedModel::load_mlc(&DirFiles::new(folder), device, options, progress).await,
    }
}

/// The tokenizer of a model.
pub async fn tokenizer(model: &Model) -> infer_core::Result<Tokenizer> {
    match model {
        Model::Checkpoint(checkpoint) => Tokenizer::from_files(&checkpoint.companion_files()?, &checkpoint.location()),
        Model::Mlc(folder) => {
            let files = DirFiles::new(folder);
            Tokenizer::from_files(&Engine::text_files(&files).await?, &files.location())
        }
    }
}
