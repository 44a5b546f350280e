//! [`LoadedModel`]: a decoder on a device with the cache of one text: a model without its text side.
//!
//! [`crate::Engine`] puts tokenizer and template to it; measurements use it as it is.

use std::{sync::Arc, time::Duration};

use model_format::{ChatConfig, Checkpoint, DecoderConfig, ModelFiles, Param, QuantFormat};
use webgpu_kernels::{Gpu, WeightFormat, gemv_chain, gpu::Around};

#[cfg(feature = "native")]
use crate::ops::candle::CandleOps;
use crate::{
    Device, Error, Need, Progress, Result, StepProfile, chain_record,
    kept::{Kept, KeptPipelines},
    memory::Holding,
    model::{Session, load_checkpoint, load_mlc, load_random},
    ops::gpu::GpuOps,
    perplexity::ROWS,
    plan::Plan,
    sampler::Sampler,
    selftest::{self, Checked},
    tuning::{self, Known, Tuned, Tuning},
    vocabulary::check_ids,
};

/// Context where the caller names none: what the model was trained for, but no more than this.
const DEFAULT_CONTEXT: usize = 4096;

/// How to load a model.
#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    /// Tokens there should be room for. `None`: the model's own context, but no more than 4096, and no more than fit into
    /// the device's memory.
    pub context: Option<usize>,
    /// Bytes of the device's memory that may be taken. `None`: nine tenths of what its driver says there are, for pictures
    /// and other programs need some.
    pub memory: Option<u64>,
    /// Where it is kept which kernels are right on this machine's devices, which of their forms are fastest, and what drivers
    /// made of them. `None`: whether they are right is found out anew each time, and presets say what is fastest.
    pub kept: Option<Arc<dyn Kept>>,
    /// When kernels are tuned to the device.
    pub tuning: Tuning,
    /// Time that tuning may take. `None`: some seconds.
    pub tuning_budget: Option<Duration>,
}

/// Time that tuning may take where the caller does not say.
const TUNING_BUDGET: Duration = Duration::from_millis(4500);

/// A decoder on a device with the cache of one text.
pub struct LoadedModel {
    session: OnDevice,
    config: DecoderConfig,
    need: Need,
    found: Found,
    notice: Option<String>,
}

/// What was found out about its kernels when it was loaded.
#[derive(Default)]
struct Found {
    tuned: Vec<Tuned>,
    checked: Option<Checked>,
}

enum OnDevice {
    #[cfg(feature = "native")]
    Cpu(Session<CandleOps>),
    Gpu(Session<GpuOps>),
}

/// The same call on whichever session there is.
macro_rules! on_session {
    ($model:expr, $session:ident => $call:expr) => {
        match $model {
            #[cfg(feature = "native")]
            OnDevice::Cpu($session) => $call,
            OnDevice::Gpu($session) => $call,
        }
    };
}

/// A session on a device, of the parts that `$load` brings there by `$ops`.
macro_rules! session_on {
    ($device:expr, $config:expr, $context:expr, $ops:ident => $load:expr) => {
        match $device {
            #[cfg(feature = "native")]
            Device::Cpu(cpu) => {
                let mut $ops = CandleOps::new(cpu);
                let parts = $load?;
                OnDevice::Cpu(Session::new($ops, $config, parts, $context)?)
            }
            Device::Gpu(gpu, kv) => {
                let mut $ops = GpuOps::new(gpu, kv);
                let parts = $load?;
                OnDevice::Gpu(Session::new($ops, $config, parts, $context)?)
            }
        }
    };
}

impl LoadedModel {
    /// Loads an MLC folder.
    pub async fn load_mlc(
        files: &impl ModelFiles,
        device: Device,
        options: &LoadOptions,
        progress: &mut dyn Progress,
    ) -> Result<LoadedModel> {
        let chat_config = ChatConfig::read(files).await?;
        let config = DecoderConfig::from_mlc(&chat_config)?;
        let format = QuantFormat::by_name(&chat_config.quantization)?;
        let default = mlc_context(&chat_config, &config);
        let holding = Holding::of_mlc(&config, format, device.codes(), device.kv_dtype());
        let need = holding.fit(&config, options.context, default, device.room(options.memory))?;
        progress.planned(&need);
        let prepared = Prepared::new(&device, &config, &need, options, Holding::stored_mlc(format))?;
        let session = session_on!(device, &config, need.context, ops =>
            load_mlc(&mut ops, &config, format, files, progress).await);
        let found = prepared.finish(options, progress).await?;
        Ok(LoadedModel::new(session, config, need, found, options))
    }

    /// Loads a Hugging Face checkpoint: float, or GPTQ.
    pub async fn load_checkpoint(
        checkpoint: &dyn Checkpoint,
        device: Device,
        options: &LoadOptions,
        progress: &mut dyn Progress,
    ) -> Result<LoadedModel> {
        let config = DecoderConfig::from_hf(checkpoint.config_json())?;
        // Four-bit matrices of a GPTQ checkpoint stay in four bits.
        let format = QuantFormat::by_name("q4f16_1").expect("a known format");
        let holding = Holding::of_checkpoint(&config, checkpoint, format, device.codes(), device.kv_dtype())?;
        let trained = config.max_position_embeddings;
        let wanted = options.context.map(|context| context.min(trained));
        let need = holding.fit(&config, wanted, DEFAULT_CONTEXT.min(trained), device.room(options.memory))?;
        progress.planned(&need);
        let stored = Holding::stored_checkpoint(checkpoint, format)?;
        let prepared = Prepared::new(&device, &config, &need, options, stored)?;
        let session = session_on!(device, &config, need.context, ops =>
            load_checkpoint(&mut ops, &config, checkpoint, Some(format), progress));
        let found = prepared.finish(options, progress).await?;
        Ok(LoadedModel::new(session, config, need, found, options))
    }

    /// Makes weights up, for measuring a shape whose files are not there.
    pub async fn load_random(
        config: &DecoderConfig,
        format: &'static QuantFormat,
        device: Device,
        options: &LoadOptions,
        progress: &mut dyn Progress,
    ) -> Result<LoadedModel> {
        let holding = Holding::of_mlc(config, format, device.codes(), device.kv_dtype());
        let default = DEFAULT_CONTEXT.min(config.max_position_embeddings);
        let need = holding.fit(config, options.context, default, device.room(options.memory))?;
        progress.planned(&need);
        let prepared = Prepared::new(&device, config, &need, options, Holding::stored_mlc(format))?;
        let session = session_on!(device, config, need.context, ops =>
            load_random(&mut ops, config, format, 0, progress));
        let found = prepared.finish(options, progress).await?;
        Ok(LoadedModel::new(session, config.clone(), need, found, options))
    }

    fn new(session: OnDevice, config: DecoderConfig, need: Need, found: Found, options: &LoadOptions) -> LoadedModel {
        let mut model = LoadedModel { session, config, need, found, notice: None };
        match &mut model.session {
            #[cfg(feature = "native")]
            OnDevice::Cpu(_) => {}
            OnDevice::Gpu(session) => session.ops_mut().set_kept(options.kept.clone()),
        }
        model
    }

    /// What the user should know of that happened since this was last asked: a fault of the device that was worked around.
    pub fn take_notice(&mut self) -> Option<String> {
        self.notice.take().or_else(|| on_session!(&mut self.session, session => session.take_notice()))
    }

    /// Takes the place of the same model on a device that failed: what went wrong there is not tried again.
    pub(crate) fn succeed(&mut self, mut former: LoadedModel) {
        self.notice = former.take_notice();
        let (Some(gpu), Some(failed)) = (self.gpu(), former.gpu()) else { return };
        if gpu.summary().name == failed.summary().name && gemv_chain::is_off(failed) {
            gemv_chain::switch_off(gpu);
        }
    }

    /// The choices that its kernels have on its device, where they were found out, now or before.
    pub fn tuned(&self) -> &[Tuned] {
        &self.found.tuned
    }

    /// What the check of its kernels took; `None` on the CPU.
    pub fn checked(&self) -> Option<Checked> {
        self.found.checked
    }

    /// What it takes of its device's memory, as planned.
    pub fn need(&self) -> &Need {
        &self.need
    }

    /// Where the time of the next token goes, kernel by kernel; `None` on the CPU.
    pub async fn profile(&mut self) -> Result<Option<StepProfile>> {
        match &mut self.session {
            #[cfg(feature = "native")]
            OnDevice::Cpu(_) => Ok(None),
            OnDevice::Gpu(session) => session.profile().await.map(Some),
        }
    }

    /// The GPU that it runs on, if it does.
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

    /// Tokens there is room for.
    pub fn context(&self) -> usize {
        self.need.context
    }

    /// Measures from now on how long submissions keep the GPU busy, where it has a clock.
    pub fn time_submissions(&mut self) {
        match &mut self.session {
            #[cfg(feature = "native")]
            OnDevice::Cpu(_) => {}
            OnDevice::Gpu(session) => {
                session.ops_mut().recorder().begin_profile(Around::Submissions);
            }
        }
    }

    /// Seconds of each submission since [`LoadedModel::time_submissions`]; nothing is measured after that.
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

    /// The loss, `-ln p`, of each token of a text after the first, given those before it. The text is run alone, and what
    /// the cache held is forgotten.
    ///
    /// Errors: a text that is empty, longer than the context, or has ids beyond the vocabulary.
    pub async fn token_losses(&mut self, text: &[u32]) -> Result<Vec<f32>> {
        self.check_text(text)?;
        on_session!(&mut self.session, session => session.token_losses(text).await)
    }

    /// The logits `[vocab_size]` after each token of a text that is run alone, some rows at a time, as `take` gets them.
    /// What the cache held is forgotten. Errors as [`LoadedModel::token_losses`], and those of `take`.
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
            (tokens, left) = left.split_at(on_session!(&self.session, session => session.logits_len(left.len(), ROWS)));
            take(&on_session!(&mut self.session, session => session.all_logits(tokens).await)?)?;
        }
        Ok(())
    }

    /// Whether a text can be run: it has a token, no more than there is room for, and the embedding table has a row for each.
    pub fn check_text(&self, text: &[u32]) -> Result<()> {
        if text.is_empty() || text.len() > self.context() {
            return Err(Error::TextLength { tokens: text.len(), context: self.context() });
        }
        check_ids(text, self.config.vocab_size)
    }

    /// How many of the next `left` tokens to run at a time.
    pub(crate) fn part_len(&self, left: usize, most: usize) -> usize {
        on_session!(&self.session, session => session.part_len(left, most))
    }

    pub(crate) async fn logits(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        on_session!(&mut self.session, session => session.logits(tokens).await)
    }

    /// Runs `tokens` behind what the cache holds: the most likely token after them. Behind a single one a GPU goes on with
    /// what is most likely, before it is asked. Errors: an id for which the embedding table has no row.
    pub async fn most_likely(&mut self, tokens: &[u32]) -> Result<u32> {
        check_ids(tokens, self.config.vocab_size)?;
        on_session!(&mut self.session, session => session.most_likely(tokens).await)
    }

    pub(crate) async fn drawn(
        &mut self,
        tokens: &[u32],
        sampler: &mut Sampler,
        generated: &[u32],
    ) -> Result<Option<u32>> {
        on_session!(&mut self.session, session => session.drawn(tokens, sampler, generated).await)
    }

    pub(crate) async fn check_guess(&mut self, token: u32, guess: &[u32]) -> Result<Vec<u32>> {
        on_session!(&mut self.session, session => session.check_guess(token, guess).await)
    }

    pub(crate) fn may_guess(&self) -> bool {
        on_session!(&self.session, session => session.may_guess())
    }

    /// Fewest tokens that are run at a time so that each comes out as in a longer part.
    pub(crate) fn fewest_rows(&self) -> usize {
        on_session!(&self.session, session => crate::ops::Ops::fewest_rows(session.ops()))
    }

    pub(crate) fn common_prefix(&self, tokens: &[u32]) -> usize {
        on_session!(&self.session, session => session.cache().common_prefix(tokens))
    }

    /// Forgets all but the first `len` tokens of the cache.
    pub fn truncate(&mut self, len: usize) {
        on_session!(&mut self.session, session => session.cache_mut().truncate(len));
    }

    /// Tokens that still fit.
    pub(crate) fn room(&self) -> usize {
        on_session!(&self.session, session => session.cache().capacity() - session.cache().len())
    }
}

/// What is known of a model's kernels before it is loaded, and what is to be done about them.
struct Prepared(Option<OnGpu>);

struct OnGpu {
    gpu: Gpu,
    plan: Plan,
    known: Known,
    pipelines: Option<KeptPipelines>,
}

impl Prepared {
    /// Begins to compile. On the CPU there is nothing to do.
    fn new(
        device: &Device,
        config: &DecoderConfig,
        need: &Need,
        options: &LoadOptions,
        stored: impl Fn(&Param) -> WeightFormat,
    ) -> Result<Prepared> {
        let (gpu, kv) = match device {
            #[cfg(feature = "native")]
            Device::Cpu(_) => return Ok(Prepared(None)),
            Device::Gpu(gpu, kv) => (gpu.clone(), *kv),
        };
        let kept = options.kept.as_deref();
        chain_record::take_up(&gpu, kept);
        let pipelines = kept.and_then(|kept| KeptPipelines::take_up(&gpu, kept));
        let mut plan = Plan::new(config, &gpu, kv, need.context, &stored)?;
        let known = Known::take_up(&gpu, &plan.problems, options.tuning, kept);
        if known.changes_something() {
            plan = Plan::new(config, &gpu, kv, need.context, &stored)?;
        }
        gpu.prepare(plan.kernels.iter().cloned());
        Ok(Prepared(Some(OnGpu { gpu, plan, known, pipelines })))
    }

    /// Sees to it that the kernels are right and the fastest, and compiled; what was found out is kept.
    async fn finish(self, options: &LoadOptions, progress: &mut dyn Progress) -> Result<Found> {
        let Some(OnGpu { gpu, plan, known, pipelines }) = self.0 else { return Ok(Found::default()) };
        let kept = options.kept.as_deref();
        let checked = selftest::ensure(&gpu, &plan.workload, kept).await?;
        let budget = options.tuning_budget.unwrap_or(TUNING_BUDGET);
        let tuned = tuning::ensure(&gpu, known, options.tuning, budget, kept, progress).await?;
        if let (Some(mut pipelines), Some(kept)) = (pipelines, kept) {
            // A software driver takes long, and keeps nothing.
            if !gpu.caps().is_software {
                gpu.compile(&plan.kernels);
            }
            pipelines.keep(&gpu, kept);
        }
        Ok(Found { tuned, checked: Some(checked) })
    }
}

/// Tokens to make room for in a model in MLC's files where nothing else is asked for. These may say less than what the
/// model was trained for.
pub(crate) fn mlc_context(chat_config: &ChatConfig, config: &DecoderConfig) -> usize {
    let trained = config.max_position_embeddings;
    chat_config.context_window_size.unwrap_or(trained).min(trained).min(DEFAULT_CONTEXT)
}
