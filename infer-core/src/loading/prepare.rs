//! [`Prepared`]: compiles, checks and tunes the kernels of a model while it is loaded.

use std::time::Duration;

use model_format::{DecoderConfig, Param};
use webgpu_kernels::{Gpu, WeightFormat};

use super::{options::LoadOptions, plan::Plan};
use crate::{
    Progress, Result,
    device::{
        Checked, Device, Tuned, chain_record,
        pipeline_cache::PipelineCache,
        selftest,
        tuning::{self, TuningState},
    },
    memory::Need,
};

/// Default time limit of tuning.
const TUNING_BUDGET: Duration = Duration::from_millis(4500);

/// Results about a model's kernels.
#[derive(Default)]
pub(super) struct KernelReport {
    /// The tuned choices.
    pub tuned: Vec<Tuned>,
    /// Cost of the check; `None` on the CPU.
    pub checked: Option<Checked>,
}

/// The kernels of a model that is being loaded: compiled and tuned while the weights are uploaded.
pub(super) struct Prepared(Option<OnGpu>);

struct OnGpu {
    gpu: Gpu,
    plan: Plan,
    tuning: TuningState,
    pipelines: Option<PipelineCache>,
}

impl Prepared {
    /// Plans the kernels and starts to compile them. Does nothing on the CPU.
    pub fn new(
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
        let cache = options.device_cache.as_deref();
        chain_record::disable_if_failed(&gpu, cache);
        let pipelines = cache.and_then(|cache| PipelineCache::load(&gpu, cache));
        let mut plan = Plan::new(config, &gpu, kv, need, &stored)?;
        let tuning = TuningState::load(&gpu, &plan.problems, options.tuning, cache);
        if tuning.differs_from_defaults() {
            plan = Plan::new(config, &gpu, kv, need, &stored)?;
        }
        gpu.prepare(plan.kernels.iter().cloned());
        Ok(Prepared(Some(OnGpu { gpu, plan, tuning, pipelines })))
    }

    /// Checks and tunes the kernels, compiles them, and stores the results.
    pub async fn finish(self, options: &LoadOptions, progress: &mut dyn Progress) -> Result<KernelReport> {
        let Some(OnGpu { gpu, plan, tuning, pipelines }) = self.0 else { return Ok(KernelReport::default()) };
        let cache = options.device_cache.as_deref();
        let checked = selftest::ensure(&gpu, &plan.workload, cache).await?;
        let budget = options.tuning_budget.unwrap_or(TUNING_BUDGET);
        let tuned = tuning::ensure(&gpu, tuning, options.tuning, budget, cache, progress).await?;
        if let (Some(mut pipelines), Some(cache)) = (pipelines, cache) {
            // A software driver compiles slowly, and stores nothing.
            if !gpu.caps().is_software {
                gpu.compile(&plan.kernels);
            }
            pipelines.save(&gpu, cache);
        }
        Ok(KernelReport { tuned, checked: Some(checked) })
    }
}
