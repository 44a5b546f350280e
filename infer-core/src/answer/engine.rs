//! [`Engine`]: a loaded model with its tokenizer and chat template. Turns conversations into tokens; `generation.rs` runs
//! them.

use model_format::{ChatConfig, Checkpoint, DecoderConfig, ModelFiles};

use super::generation::{Generation, Suspended};
use crate::{
    Error, Progress, Result,
    device::{Checked, Device},
    loading::{LoadOptions, LoadedModel, default_context},
    sampling::{ChatDefaults, sampler::SamplingParams},
    text::{
        ModelText, TEXT_FILES,
        chat_template::{ChatTemplate, Message},
        tokenizer::Tokenizer,
    },
};

/// A loaded model with its tokenizer and chat template.
pub struct Engine {
    model: LoadedModel,
    text: ModelText,
}

impl Engine {
    /// The small files of a model that an engine reads if they exist.
    pub const TEXT_FILES: [&str; 6] = TEXT_FILES;

    /// Reads the [`Engine::TEXT_FILES`] of an MLC folder. Returns names and contents.
    pub async fn text_files(files: &impl ModelFiles) -> Result<Vec<(String, Vec<u8>)>> {
        let mut texts = Vec::new();
        for name in Engine::TEXT_FILES {
            if files.exists(name).await {
                texts.push((name.to_string(), files.read(name).await?));
            }
        }
        Ok(texts)
    }

    /// Context in tokens of [`Engine::load_mlc`] if [`LoadOptions::context`] is `None`.
    pub fn default_context(chat_config: &ChatConfig, config: &DecoderConfig) -> usize {
        default_context(chat_config, config)
    }

    /// Loads an MLC folder.
    ///
    /// Errors: a damaged file; a failure of the device; [`Error::DoesNotFit`]; [`Error::TemplateToken`].
    pub async fn load_mlc(
        files: &impl ModelFiles,
        device: Device,
        options: &LoadOptions,
        progress: &mut dyn Progress,
    ) -> Result<Engine> {
        let rows = DecoderConfig::from_mlc(&ChatConfig::read(files).await?)?.vocab_size;
        let text = ModelText::new(&Engine::text_files(files).await?, &files.location(), rows)?;
        Ok(Engine { model: LoadedModel::load_mlc(files, device, options, progress).await?, text })
    }

    /// Loads a Hugging Face checkpoint: float, or GPTQ. Errors as [`Engine::load_mlc`].
    pub async fn load_checkpoint(
        checkpoint: &dyn Checkpoint,
        device: Device,
        options: &LoadOptions,
        progress: &mut dyn Progress,
    ) -> Result<Engine> {
        let rows = DecoderConfig::from_hf(checkpoint.config_json())?.vocab_size;
        let text = ModelText::new(&checkpoint.companion_files()?, &checkpoint.location(), rows)?;
        Ok(Engine { model: LoadedModel::load_checkpoint(checkpoint, device, options, progress).await?, text })
    }

    /// Starts the answer to a conversation. Reuses the KV cache of the common prefix with the conversation before.
    ///
    /// Drop the generation to end the answer early. Errors: [`Error::ChatTemplate`]; [`Error::BadParameter`];
    /// [`Error::ContextFull`]; [`Error::TokenOutOfRange`].
    pub fn chat(&mut self, messages: &[Message], params: SamplingParams) -> Result<Generation<'_>> {
        let tokens = self.chat_tokens(messages)?;
        Generation::new(&mut self.model, &self.text, tokens, params)
    }

    /// Starts the continuation of a plain text. Prepends the tokenizer's prefix (BOS, if the model has one). Control tokens in
    /// the text are parsed as such, so pass only trusted text. Errors as [`Engine::chat`].
    pub fn complete(&mut self, text: &str, params: SamplingParams) -> Result<Generation<'_>> {
        let tokens = self.text.tokenizer.encode_with_prefix(text)?;
        Generation::new(&mut self.model, &self.text, tokens, params)
    }

    /// Continues an answer whose device failed, on the same model loaded again. The text is the same as without the failure.
    ///
    /// Panics if `model` has another shape.
    pub fn resume(&mut self, model: LoadedModel, suspended: Suspended) -> Generation<'_> {
        assert_eq!(model.config(), self.config(), "resume: the model's shape");
        let former = std::mem::replace(&mut self.model, model);
        self.model.take_over_from(former);
        Generation::resumed(&mut self.model, &self.text, suspended)
    }

    /// The prompt of a conversation as tokens, up to the start of the answer.
    pub fn chat_tokens(&self, messages: &[Message]) -> Result<Vec<u32>> {
        let template = self.text.template.as_ref().ok_or_else(|| Error::ChatTemplate {
            reason: "this model has none (`chat_template.jinja`, or one in `tokenizer_config.json`)".into(),
        })?;
        template.encode(&self.text.tokenizer, messages, true)
    }

    /// The model's chat template, to set its variables. `None` if the model has none.
    pub fn template(&mut self) -> Option<&mut ChatTemplate> {
        self.text.template.as_mut()
    }

    /// Runs a token and drops it: compiles the kernels, and reveals errors that the device reports late.
    pub async fn warm_up(&mut self) -> Result<()> {
        self.reset();
        self.model.most_likely(&[0]).await?;
        self.reset();
        Ok(())
    }

    /// Empties the KV cache.
    pub fn reset(&mut self) {
        self.model.truncate(0);
    }

    /// Takes the message for the user about a device fault that was worked around: see [`LoadedModel::take_notice`].
    pub fn take_notice(&mut self) -> Option<String> {
        self.model.take_notice()
    }

    /// The model without its text side.
    pub fn model(&mut self) -> &mut LoadedModel {
        &mut self.model
    }

    /// The default settings of a chat: the model's recommendations, else ours.
    pub fn chat_defaults(&self) -> &ChatDefaults {
        &self.text.defaults
    }

    /// The ids that end an answer.
    pub fn stop_tokens(&self) -> &[u32] {
        &self.text.stop_tokens
    }

    /// The model's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.text.tokenizer
    }

    /// The model's shape.
    pub fn config(&self) -> &DecoderConfig {
        self.model.config()
    }

    /// Cost of the check of its kernels; `None` on the CPU.
    pub fn checked(&self) -> Option<Checked> {
        self.model.checked()
    }

    /// Capacity of the KV cache in tokens, prompt and answers together.
    pub fn context(&self) -> usize {
        self.model.context()
    }
}
