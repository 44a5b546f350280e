//! [`Engine`]: a loaded model with its tokenizer and chat template. Turns conversations into tokens; `batch.rs` runs them.

use std::ops::DerefMut;

use model_format::{ChatConfig, Checkpoint, DecoderConfig, ModelFiles};

use super::{
    batch::CacheUse,
    generation::{Generation, Suspended},
    state::Answer,
    token_engine::TokenEngine,
};
use crate::{
    Error, Progress, Result,
    device::{Checked, Device},
    loading::{LoadOptions, LoadedModel, default_context},
    sampling::{ChatDefaults, sampler::SamplingParams},
    text::{
        ModelText, TEXT_FILES,
        chat_template::{ChatTemplate, Message},
        check_tokens,
        tokenizer::Tokenizer,
    },
};

/// A loaded model with its tokenizer and chat template.
///
/// All methods that start or continue answers take `&self`: put the engine into an `Arc` to use it from several tasks.
pub struct Engine {
    tokens: TokenEngine,
    text: ModelText,
    checked: Option<Checked>,
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
        Ok(Engine::new(LoadedModel::load_mlc(files, device, options, progress).await?, text))
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
        Ok(Engine::new(LoadedModel::load_checkpoint(checkpoint, device, options, progress).await?, text))
    }

    fn new(model: LoadedModel, text: ModelText) -> Engine {
        Engine { checked: model.checked(), tokens: TokenEngine::new(model), text }
    }

    /// Starts the answer to a conversation. Reuses the stored keys and values of equal beginnings of earlier texts.
    ///
    /// Any number of answers may be in progress; they run together. Drop the generation to end the answer early. Errors:
    /// [`Error::ChatTemplate`]; [`Error::BadParameter`]; [`Error::ContextFull`]; [`Error::TokenOutOfRange`].
    pub fn chat(&self, messages: &[Message], params: SamplingParams) -> Result<Generation> {
        self.start(self.chat_tokens(messages)?, params)
    }

    /// Starts the continuation of a plain text. Prepends the tokenizer's prefix (BOS, if the model has one). Control tokens in
    /// the text are parsed as such, so pass only trusted text. Errors as [`Engine::chat`].
    pub fn complete(&self, text: &str, params: SamplingParams) -> Result<Generation> {
        self.start(self.text.tokenizer.encode_with_prefix(text)?, params)
    }

    fn start(&self, prompt: Vec<u32>, params: SamplingParams) -> Result<Generation> {
        check_tokens(&prompt, self.config().vocab_size, &self.text.tokenizer)?;
        self.tokens.start_answer(Answer::new(Some(&self.text), prompt, params)?)
    }

    /// Continues an answer whose device failed, on the same model loaded again. The text is the same as without the failure.
    ///
    /// Other answers in progress continue on `model`, too. Panics if `model` has another shape.
    pub async fn resume(&self, model: LoadedModel, suspended: Suspended) -> Generation {
        self.tokens.resume(model, suspended).await
    }

    /// Continues an answer whose device failed, on the model that another answer's [`Engine::resume`] put in place.
    pub fn resume_here(&self, suspended: Suspended) -> Generation {
        self.tokens.resume_here(suspended)
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
    pub async fn warm_up(&self) -> Result<()> {
        let mut model = self.model().await;
        model.truncate(0);
        model.most_likely(&[0]).await?;
        model.truncate(0);
        Ok(())
    }

    /// Forgets all keys and values at the next step. Answers in progress compute theirs again.
    pub fn reset(&self) {
        self.tokens.reset();
    }

    /// Takes the message for the user about a device fault that was worked around: see [`LoadedModel::take_notice`].
    pub fn take_notice(&self) -> Option<String> {
        self.tokens.take_notice()
    }

    /// The model without its text side: see [`TokenEngine::model`].
    pub async fn model(&self) -> impl DerefMut<Target = LoadedModel> {
        self.tokens.model().await
    }

    /// The use of the cache: see [`TokenEngine::cache_use`].
    pub async fn cache_use(&self) -> CacheUse {
        self.tokens.cache_use().await
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
        self.tokens.config()
    }

    /// Cost of the check of its kernels; `None` on the CPU.
    pub fn checked(&self) -> Option<Checked> {
        self.checked
    }

    /// Capacity of the KV cache in tokens, prompt and answers together.
    pub fn context(&self) -> usize {
        self.tokens.context()
    }
}
