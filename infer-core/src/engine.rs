//! [`Engine`]: a loaded model one can talk to. Loads weights, tokenizer and template; turns a conversation into tokens;
//! `generation.rs` does the rest.

use model_format::{ChatConfig, Checkpoint, DecoderConfig, ModelFiles};

use crate::{
    ChatDefaults, ChatTemplate, Checked, Device, Generation, LoadOptions, LoadedModel, Message, Progress, Result,
    SamplingParams, Suspended, Tokenizer,
    loaded_model::mlc_context,
    stop::{stop_strings, stop_token_ids},
    vocabulary::check_template,
};

/// A loaded model one can talk to.
pub struct Engine {
    pub(crate) model: LoadedModel,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) stop_tokens: Vec<u32>,
    pub(crate) stop_strings: Vec<String>,
    template: Option<ChatTemplate>,
    defaults: ChatDefaults,
}

impl Engine {
    /// Files besides the weights that an engine reads, where they exist.
    pub const TEXT_FILES: [&str; 6] = [
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "generation_config.json",
        "config.json",
        "mlc-chat-config.json",
    ];

    /// Those of them that an MLC folder has, with their contents.
    pub async fn text_files(files: &impl ModelFiles) -> Result<Vec<(String, Vec<u8>)>> {
        let mut texts = Vec::new();
        for name in Engine::TEXT_FILES {
            if files.exists(name).await {
                texts.push((name.to_string(), files.read(name).await?));
            }
        }
        Ok(texts)
    }

    /// Tokens that [`Engine::load_mlc`] makes room for where the caller does not say.
    pub fn default_context(chat_config: &ChatConfig, config: &DecoderConfig) -> usize {
        mlc_context(chat_config, config)
    }

    /// Loads an MLC folder.
    ///
    /// Errors, besides those of files and device: the chat template writes a token for which the embedding table has no row.
    pub async fn load_mlc(
        files: &impl ModelFiles,
        device: Device,
        options: &LoadOptions,
        progress: &mut dyn Progress,
    ) -> Result<Engine> {
        let rows = DecoderConfig::from_mlc(&ChatConfig::read(files).await?)?.vocab_size;
        let text = Text::new(&Engine::text_files(files).await?, &files.location(), rows)?;
        Ok(Engine::assemble(LoadedModel::load_mlc(files, device, options, progress).await?, text))
    }

    /// Loads a Hugging Face checkpoint: float, or GPTQ. Errors as [`Engine::load_mlc`].
    pub async fn load_checkpoint(
        checkpoint: &dyn Checkpoint,
        device: Device,
        options: &LoadOptions,
        progress: &mut dyn Progress,
    ) -> Result<Engine> {
        let rows = DecoderConfig::from_hf(checkpoint.config_json())?.vocab_size;
        let text = Text::new(&checkpoint.companion_files()?, &checkpoint.location(), rows)?;
        Ok(Engine::assemble(LoadedModel::load_checkpoint(checkpoint, device, options, progress).await?, text))
    }

    fn assemble(model: LoadedModel, text: Text) -> Engine {
        let Text { tokenizer, stop_tokens, stop_strings, template, defaults } = text;
        Engine { model, tokenizer, stop_tokens, stop_strings, template, defaults }
    }

    /// Begins the answer to a conversation. What the cache holds of it already is not run again.
    ///
    /// Dropping the generation ends the answer.
    pub fn chat(&mut self, messages: &[Message], params: SamplingParams) -> Result<Generation<'_>> {
        let tokens = self.chat_tokens(messages)?;
        Generation::new(self, tokens, params)
    }

    /// Begins the continuation of a plain text, behind the tokens that the model's tokenizer puts before a text (BOS, where it
    /// has one). Control tokens in the text are read as such.
    pub fn complete(&mut self, text: &str, params: SamplingParams) -> Result<Generation<'_>> {
        let tokens = self.tokenizer.encode_with_prefix(text)?;
        Generation::new(self, tokens, params)
    }

    /// Goes on with an answer whose device failed, on the model as it was loaded again: the same text comes, as if nothing
    /// had happened. Panics when it is another model.
    pub fn resume(&mut self, model: LoadedModel, suspended: Suspended) -> Generation<'_> {
        assert_eq!(model.config(), self.config(), "resume: the model's shape");
        let former = std::mem::replace(&mut self.model, model);
        self.model.succeed(former);
        Generation::resumed(self, suspended)
    }

    /// The tokens that [`Engine::chat`] runs for a conversation, up to where the answer begins.
    pub fn chat_tokens(&self, messages: &[Message]) -> Result<Vec<u32>> {
        let template = self.template.as_ref().ok_or_else(|| crate::Error::ChatTemplate {
            reason: "this model has none (`chat_template.jinja`, or one in `tokenizer_config.json`)".into(),
        })?;
        template.encode(&self.tokenizer, messages, true)
    }

    /// The model's chat template, to set what it reads.
    pub fn template(&mut self) -> Option<&mut ChatTemplate> {
        self.template.as_mut()
    }

    /// Runs a token and forgets it: kernels are compiled, and what the device reports late is reported now.
    pub async fn warm_up(&mut self) -> Result<()> {
        self.reset();
        self.model.most_likely(&[0]).await?;
        self.reset();
        Ok(())
    }

    /// Forgets the conversation's cache.
    pub fn reset(&mut self) {
        self.model.truncate(0);
    }

    /// What the user should know of that happened since this was last asked: see [`LoadedModel::take_notice`].
    pub fn take_notice(&mut self) -> Option<String> {
        self.model.take_notice()
    }

    /// The model without its text side.
    pub fn model(&mut self) -> &mut LoadedModel {
        &mut self.model
    }

    /// The settings of a chat where the user gives none: the model's recommendation, else ours.
    pub fn chat_defaults(&self) -> &ChatDefaults {
        &self.defaults
    }

    /// The model's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The model's shape.
    pub fn config(&self) -> &DecoderConfig {
        self.model.config()
    }

    /// What the check of its kernels took; `None` on the CPU.
    pub fn checked(&self) -> Option<Checked> {
        self.model.checked()
    }

    /// Tokens there is room for, prompt and answers together.
    pub fn context(&self) -> usize {
        self.model.context()
    }
}

/// The text side of a model.
struct Text {
    tokenizer: Tokenizer,
    stop_tokens: Vec<u32>,
    stop_strings: Vec<String>,
    template: Option<ChatTemplate>,
    defaults: ChatDefaults,
}

impl Text {
    /// `rows`: of the embedding table, which a prompt's ids have to be below.
    fn new(files: &[(String, Vec<u8>)], location: &str, rows: usize) -> Result<Text> {
        let tokenizer = Tokenizer::from_files(files, location)?;
        let template = ChatTemplate::from_files(files)?;
        if let Some(template) = &template {
            check_template(template, rows, &tokenizer)?;
        }
        // The model chooses no token beyond the table, so an id beyond it stops nothing.
        let stop_tokens = stop_token_ids(files, &tokenizer).into_iter().filter(|id| (*id as usize) < rows).collect();
        Ok(Text {
            stop_tokens,
            stop_strings: stop_strings(files),
            template,
            defaults: ChatDefaults::from_files(files),
            tokenizer,
        })
    }
}
