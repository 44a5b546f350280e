//! [`LoadedModel`]: a decoder on a device, with the KV cache of one text, without tokenizer and template.
//!
//! [`Engine`](crate::Engine) adds the text side. Measurements, and programs with a sampler of their own, use it directly.

use model_format::{ChatConfig, Checkpoint, DecoderConfig, ModelFiles, QuantFormat};
use webgpu_kernels::{Gpu, gemv_chain, gpu::Around};

use super::{
    need::ModelSize,
    options::LoadOptions,
    prepare::{KernelReport, Prepared},
};
#[cfg(feature = "native")]
use crate::ops::candle::CandleOps;
use crate::{
    Error, Progress, Result,
    device::{Checked, Device, Tuned},
    memory::Need,
    model::{
        Session, StepProfile, load_checkpoint, load_mlc, load_random,
        perplexity::ROWS,
        steps::{StepResults, StepRows},
    },
    ops::{Forward, gpu::GpuOps},
    sampling::sampler::Sampler,
    text::check_ids,
};

/// Limit of the context if the caller gives none. A model trained for less gets its own context.
const DEFAULT_CONTEXT: usize = 4096;

/// A decoder on a device, with the KV cache of one text.
pub struct LoadedModel {
    session: OnDevice,
    config: DecoderConfig,
    need: Need,
    kernels: KernelReport,
    notice: Option<String>,
}

enum OnDevice {
    #[cfg(feature = "native")]
    Cpu(Session<CandleOps>),
    Gpu(Session<GpuOps>),
}

/// Makes the same call on the CPU's or the GPU's session.
macro_rules! on_session {
    ($model:expr, $session:ident => $call:expr) => {
        match $model {
            #[cfg(feature = "native")]
            OnDevice::Cpu($session) => $call,
            OnDevice::Gpu($session) => $call,
        }
    };
}

/// A session on a device, with the parameters that `$load` uploads through `$ops`.
macro_rules! session_on {
    ($device:expr, $config:expr, $need:expr, $ops:ident => $load:expr) => {
        match $device {
            #[cfg(feature = "native")]
            Device::Cpu(cpu) => {
                let mut $ops = CandleOps::new(cpu);
                let parts = $load?;
                OnDevice::Cpu(Session::new($ops, $config, parts, $need.context, $need.conversations)?)
            }
            Device::Gpu(gpu, kv) => {
                let mut $ops = GpuOps::new(gpu, kv);
                let parts = $load?;
                OnDevice::Gpu(Session::new($ops, $config, parts, $need.context, $need.conversations)?)
            }
        }
    };
}

impl LoadedModel {
    /// Loads an MLC folder.
    ///
    /// Errors: a damaged file; a failure of the device; [`Error::DoesNotFit`].
    pub async fn load_mlc(
        files: &impl ModelFiles,
        device: Device,
        options: &LoadOptions,
        progress: &mut dyn Progress,
    ) -> Result<LoadedModel> {
        let chat_config = ChatConfig::read(files).await?;
        let config = DecoderConfig::from_mlc(&chat_config)?;
        let format = QuantFormat::by_name(&chat_config.quantization)?;
        let default = default_context(&chat_config, &config);
        let size = ModelSize::of_mlc(&config, format, device.matrix_storage(), device.kv_dtype());
        let size = size.with_conversations(options.conversations);
        let need = size.fit(&config, options.context, default, device.room(options.memory))?;
        progress.planned(&need);
        let prepared = Prepared::new(&device, &config, &need, options, ModelSize::stored_mlc(format))?;
        let session = session_on!(device, &config, need, ops =>
            load_mlc(&mut ops, &config, format, files, progress).await);
        let kernels = prepared.finish(options, progress).await?;
        Ok(LoadedModel::new(session, config, need, kernels, options))
    }

    /// Loads a Hugging Face checkpoint: float, or GPTQ. Errors as [`LoadedModel::load_mlc`].
    pub async fn load_checkpoint(
        checkpoint: &dyn Checkpoint,
        device: Device,
        options: &LoadOptions,
        progress: &mut dyn Progress,
    ) -> Result<LoadedModel> {
        let config = DecoderConfig::from_hf(checkpoint.config_json())?;
        // 4-bit matrices of a GPTQ checkpoint stay in 4 bits.
        let format = QuantFormat::by_name("q4f16_1").expect("a known format");
        let size = ModelSize::of_checkpoint(&config, checkpoint, format, device.matrix_storage(), device.kv_dtype())?;
        let trained = config.max_position_embeddings;
        let wanted = options.context.map(|context| context.min(trained));
        let size = size.with_conversations(options.conversations);
        let need = size.fit(&config, wanted, DEFAULT_CONTEXT.min(trained), device.room(options.memory))?;
        progress.planned(&need);
        let stored = ModelSize::stored_checkpoint(checkpoint, format)?;
        let prepared = Prepared::new(&device, &config, &need, options, stored)?;
        let session = session_on!(device, &config, need, ops =>
            load_checkpoint(&mut ops, &config, checkpoint, Some(format), progress));
        let kernels = prepared.finish(options, progress).await?;
        Ok(LoadedModel::new(session, config, need, kernels, options))
    }

    /// Loads random weights, to measure the speed of a shape without its files. Errors as [`LoadedModel::load_mlc`].
    pub async fn load_random(
        config: &DecoderConfig,
        format: &'static QuantFormat,
        device: Device,
        options: &LoadOptions,
        progress: &mut dyn Progress,
    ) -> Result<LoadedModel> {
        let size = ModelSize::of_mlc(config, format, device.matrix_storage(), device.kv_dtype());
        let default = DEFAULT_CONTEXT.min(config.max_position_embeddings);
        let size = size.with_conversations(options.conversations);
        let need = size.fit(config, options.context, default, device.room(options.memory))?;
        progress.planned(&need);
        let prepared = Prepared::new(&device, config, &need, options, ModelSize::stored_mlc(format))?;
        let session = session_on!(device, config, need, ops =>
            load_random(&mut ops, config, format, 0, progress));
        let kernels = prepared.finish(options, progress).await?;
        Ok(LoadedModel::new(session, config.clone(), need, kernels, options))
    }

    fn new(
        session: OnDevice,
        config: DecoderConfig,
        need: Need,
        kernels: KernelReport,
        options: &LoadOptions,
    ) -> LoadedModel {
        let mut model = LoadedModel { session, config, need, kernels, notice: None };
        match &mut model.session {
            #[cfg(feature = "native")]
            OnDevice::Cpu(_) => {}
            OnDevice::Gpu(session) => session.ops_mut().set_cache(options.device_cache.clone()),
        }
        model
    }

    /// Takes the message for the user about a device fault that was worked around, if one occurred.
    pub fn take_notice(&mut self) -> Option<String> {
        self.notice.take().or_else(|| on_session!(&mut self.session, session => session.take_notice()))
    }

    /// Replaces `former`, the same model on a device that failed. Disables chains if they were disabled there.
    pub(crate) fn take_over_from(&mut self, mut former: LoadedModel) {
        self.notice = former.take_notice();
        let (Some(gpu), Some(failed)) = (self.gpu(), former.gpu()) else { return };
        if gpu.summary().name == failed.summary().name && gemv_chain::is_off(failed) {
            gemv_chain::switch_off(gpu);
        }
    }

    /// The tuned choices of its kernels, measured now or earlier.
    pub fn tuned(&self) -> &[Tuned] {
        &self.kernels.tuned
    }

    /// Cost of the check of its kernels; `None` on the CPU.
    pub fn checked(&self) -> Option<Checked> {
        self.kernels.checked
    }

    /// The planned use of device memory.
    pub fn need(&self) -> &Need {
        &self.need
    }

    /// Profiles the next token, kernel by kernel; `None` on the CPU.
    pub async fn profile(&mut self) -> Result<Option<StepProfile>> {
        match &mut self.session {
            #[cfg(feature = "native")]
            OnDevice::Cpu(_) => Ok(None),
            OnDevice::Gpu(session) => session.profile().await.map(Some),
        }
    }

    /// Its GPU; `None` on the CPU.
    pub fn gpu(&self) -> Option<&Gpu> {
        match &self.session {
            #[cfg(feature = "native")]
            OnDevice::Cpu(_) => None,
            OnDevice::Gpu(session) => Some(session.ops().gpu()),
        }
    }

    /// The model's shape.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// Capacity of the KV cache in tokens.
    pub fn context(&self) -> usize {
        self.need.context
    }

    /// Starts to measure the GPU time of each submission, if the device has timestamps.
    pub fn time_submissions(&mut self) {
        match &mut self.session {
            #[cfg(feature = "native")]
            OnDevice::Cpu(_) => {}
            OnDevice::Gpu(session) => {
                session.ops_mut().recorder().begin_profile(Around::Submissions);
            }
        }
    }

    /// Seconds of each submission since [`LoadedModel::time_submissions`]. Stops measuring.
    pub async fn submission_seconds(&mut self) -> Result<Vec<f64>> {
        match &mut self.session {
            #[cfg(feature = "native")]
            OnDevice::Cpu(_) => Ok(Vec::new()),
            OnDevice::Gpu(session) => {
                let timed = session.ops_mut().recorder().end_profile().await?;
                Ok(timed.iter().map(|timed| timed.end - timed.begin).collect())
            }
        }
    }

    /// The loss, `-ln p`, of each token of a text after the first, given the tokens before it. The text replaces the content
    /// of the cache.
    ///
    /// Errors: the text is empty, longer than the context, or has ids beyond the embedding table.
    pub async fn token_losses(&mut self, text: &[u32]) -> Result<Vec<f32>> {
        self.check_text(text)?;
        on_session!(&mut self.session, session => session.token_losses(text).await)
    }

    /// Calls `take` with the logits `[rows, vocab_size]` after the tokens of a text, some rows at a time. The text replaces the
    /// content of the cache. Errors: as [`LoadedModel::token_losses`], and any error of `take`.
    pub async fn text_logits<E: From<Error>>(
        &mut self,
        text: &[u32],
        mut take: impl FnMut(&[f32]) -> Result<(), E>,
    ) -> Result<(), E> {
        self.check_text(text)?;
        on_session!(&mut self.session, session => session.cache_mut().begin_text(text.len()));
        let mut left = text;
        while !left.is_empty() {
            let tokens;
            (tokens, left) =
                left.split_at(on_session!(&self.session, session => session.logits_chunk_len(left.len(), ROWS)));
            take(&on_session!(&mut self.session, session => session.all_logits(tokens).await)?)?;
        }
        Ok(())
    }

    /// Checks that a text can run: it has a token, fits into the context, and has a row of the embedding table for each id.
    pub fn check_text(&self, text: &[u32]) -> Result<()> {
        if text.is_empty() || text.len() > self.context() {
            return Err(Error::TextLength { tokens: text.len(), context: self.context() });
        }
        check_ids(text, self.config.vocab_size)
    }

    /// The number of the next `left` tokens to run at a time, about `limit`.
    pub(crate) fn chunk_len(&self, left: usize, limit: usize) -> usize {
        on_session!(&self.session, session => session.chunk_len(left, limit))
    }

    /// Runs `tokens` after those in the cache. Returns the logits `[vocab_size]` after the last one, for a sampler of the
    /// caller's. Errors: no token, too many tokens, or an id beyond the embedding table; a failure of the device.
    pub async fn logits(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        if tokens.is_empty() || tokens.len() > self.room() {
            return Err(Error::TextLength { tokens: tokens.len(), context: self.room() });
        }
        check_ids(tokens, self.config.vocab_size)?;
        on_session!(&mut self.session, session => session.logits(tokens).await)
    }

    /// Runs `tokens` after those in the cache. Returns the most likely next token. After a single token, a GPU continues with
    /// its own choice ahead of the next call. Errors: an id beyond the embedding table; a failure of the device.
    pub async fn most_likely(&mut self, tokens: &[u32]) -> Result<u32> {
        check_ids(tokens, self.config.vocab_size)?;
        on_session!(&mut self.session, session => session.most_likely(tokens).await)
    }

    /// Records a step of many sequences: see [`Session::record`].
    pub(crate) fn record_step(&mut self, rows: &[StepRows], chosen: Option<usize>, long: bool) -> Result<()> {
        on_session!(&mut self.session, session => session.record(rows, chosen, long))
    }

    /// Waits for the results of the first recorded step.
    pub(crate) async fn finish_step(&mut self) -> Result<StepResults> {
        on_session!(&mut self.session, session => session.finish().await)
    }

    /// The row of the choices of a recorded step with the token of its sequence `i`.
    pub(crate) fn chosen_row(&self, step: usize, i: usize) -> usize {
        on_session!(&self.session, session => session.steps().chosen_row(step, i))
    }

    /// True if a single row runs in kernel chains.
    pub(crate) fn has_chained(&self) -> bool {
        match &self.session {
            #[cfg(feature = "native")]
            OnDevice::Cpu(_) => false,
            OnDevice::Gpu(session) => session.ops().has_chained(),
        }
    }

    /// Drops the one text and all recorded steps.
    pub(crate) fn clear(&mut self) {
        on_session!(&mut self.session, session => session.clear());
    }

    pub(crate) fn set_draw(&mut self, id: u64, sampler: &Sampler, generated: &[u32]) -> Result<bool> {
        on_session!(&mut self.session, session => session.set_draw(id, sampler, generated))
    }

    pub(crate) fn drop_draw(&mut self, id: u64) {
        on_session!(&mut self.session, session => session.drop_draw(id));
    }

    /// Lookahead in steps.
    pub(crate) fn ahead(&self) -> usize {
        on_session!(&self.session, session => session.lookahead())
    }

    /// Number of pages of keys and values.
    pub(crate) fn pages(&self) -> usize {
        on_session!(&self.session, session => session.pages())
    }

    /// Texts of more tokens have the rotary frequencies of long texts.
    pub(crate) fn long_from(&self) -> usize {
        on_session!(&self.session, session => session.long_from())
    }

    pub(crate) fn may_guess(&self) -> bool {
        on_session!(&self.session, session => session.may_guess())
    }

    /// The smallest chunk of tokens with the same results, bit for bit, as a longer one.
    pub(crate) fn fewest_rows(&self) -> usize {
        on_session!(&self.session, session => Forward::fewest_rows(session.ops()))
    }

    /// Drops all but the first `len` tokens of the cache.
    pub fn truncate(&mut self, len: usize) {
        on_session!(&mut self.session, session => session.cache_mut().truncate(len));
    }

    /// Number of tokens that still fit into the cache.
    pub fn room(&self) -> usize {
        on_session!(&self.session, session => session.cache().capacity() - session.cache().len())
    }
}

/// The context of an MLC folder if the caller gives none. Its configuration may set less than the model was trained for.
pub(crate) fn default_context(chat_config: &ChatConfig, config: &DecoderConfig) -> usize {
    let trained = config.max_position_embeddings;
    chat_config.context_window_size.unwrap_or(trained).min(trained).min(DEFAULT_CONTEXT)
}
