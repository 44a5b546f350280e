//! [`TokenEngine`]: answers of token ids, without tokenizer and template.

use std::{
    ops::{Deref, DerefMut},
    sync::Arc,
};

use model_format::DecoderConfig;

use super::{
    batch::{Batch, CacheUse},
    generation::{Generation, Suspended},
    shared::{Held, Shared},
    state::Answer,
};
use crate::{
    Error, Result,
    loading::LoadedModel,
    sampling::sampler::SamplingParams,
    text::{check_biases, check_ids},
};

/// A loaded model that answers in token ids. [`Engine`](crate::Engine) adds the text side.
///
/// All methods take `&self`: put it into an `Arc` to use it from several tasks.
pub struct TokenEngine {
    shared: Arc<Shared>,
    config: DecoderConfig,
    context: usize,
}

impl TokenEngine {
    /// Answers by `model`.
    #[allow(clippy::arc_with_non_send_sync, reason = "in a browser all tasks are on one thread")]
    pub fn new(model: LoadedModel) -> TokenEngine {
        let (config, context) = (model.config().clone(), model.context());
        TokenEngine { shared: Arc::new(Shared::new(Batch::new(model))), config, context }
    }

    /// Starts the continuation of `prompt`. It ends at [`SamplingParams::max_tokens`] or when the context is full.
    ///
    /// Any number of answers may be in progress; they run together. Errors: [`Error::BadParameter`]; [`Error::ContextFull`];
    /// [`Error::TokenOutOfRange`].
    pub fn start(&self, prompt: Vec<u32>, params: SamplingParams) -> Result<Generation> {
        check_ids(&prompt, self.config.vocab_size)?;
        self.start_answer(Answer::new(None, prompt, params)?)
    }

    pub(super) fn start_answer(&self, answer: Answer) -> Result<Generation> {
        check_biases(&answer.params.logit_bias, self.config.vocab_size)?;
        if answer.history.is_empty() || answer.history.len() >= self.context {
            return Err(Error::ContextFull { tokens: answer.history.len(), context: self.context });
        }
        Ok(Generation::start(self.shared.clone(), answer))
    }

    /// Continues an answer whose device failed, on the same model loaded again. The text is the same as without the failure.
    ///
    /// Other answers in progress continue on `model`, too. Panics if `model` has another shape.
    pub async fn resume(&self, model: LoadedModel, suspended: Suspended) -> Generation {
        assert_eq!(model.config(), self.config(), "resume: the model's shape");
        self.shared.lock().await.replace_model(model);
        Generation::start(self.shared.clone(), suspended.0)
    }

    /// Continues an answer whose device failed, on the model that another answer's [`TokenEngine::resume`] put in place.
    pub fn resume_here(&self, suspended: Suspended) -> Generation {
        Generation::start(self.shared.clone(), suspended.0)
    }

    /// Forgets all keys and values at the next step. Answers in progress compute theirs again.
    pub fn reset(&self) {
        self.shared.forget();
    }

    /// Takes the message for the user about a device fault that was worked around: see [`LoadedModel::take_notice`].
    pub fn take_notice(&self) -> Option<String> {
        self.shared.take_notice()
    }

    /// The model, for work of one text at a time. Forgets all keys and values. Waits while a generation runs a step; answers
    /// in progress wait until the result is dropped.
    pub async fn model(&self) -> impl DerefMut<Target = LoadedModel> {
        let mut batch = self.shared.lock().await;
        batch.forget();
        ModelGuard(batch)
    }

    /// The use of the cache. Waits while a generation runs a step.
    pub async fn cache_use(&self) -> CacheUse {
        self.shared.lock().await.cache_use()
    }

    /// The model's shape.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// Limit of prompt and answer together, in tokens.
    pub fn context(&self) -> usize {
        self.context
    }
}

/// The model of a batch.
struct ModelGuard<'a>(Held<'a>);

impl Deref for ModelGuard<'_> {
    type Target = LoadedModel;

    fn deref(&self) -> &LoadedModel {
        self.0.model()
    }
}

impl DerefMut for ModelGuard<'_> {
    fn deref_mut(&mut self) -> &mut LoadedModel {
        self.0.model_mut()
    }
}
