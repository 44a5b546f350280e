//! [`Plan`]: the kernels of a model on a GPU, with their variants and shapes, known before the model is loaded.
//!
//! The decoder runs over operations that are recorded and discarded, so the plan has every kernel that it uses. Kernels can
//! then be compiled and tuned while the weights are uploaded.

use model_format::{DecoderConfig, Param, QuantFormat, params::joined_params};
use webgpu_kernels::{Gpu, Kernel, KvDtype, Variant, WeightFormat, gpu::Traced, selftest::Workload, tuning::Problem};

use super::need::ModelSize;
use crate::{
    Result,
    memory::Need,
    model::{
        Decoder, KvCache, KvPool, Parts, Sequence, attention_shape,
        chunks::{FEWEST_ROWS, PREFILL_CHUNK},
    },
    ops::{AttentionShape, Loading, gpu::GpuOps},
};

/// The kernels of a model on a GPU.
pub(crate) struct Plan {
    /// Problems to tune, by falling cost: first for a decoded token, then for prompts.
    pub problems: Vec<Problem>,
    /// Kernels to compile for a decoded token and a long prompt.
    pub kernels: Vec<(&'static Kernel, Variant)>,
    /// Kernels to check.
    pub workload: Workload,
}

/// A decoder and its cache over operations that are recorded and not run.
struct DryRun {
    ops: GpuOps,
    decoder: Decoder<GpuOps>,
    pool: KvPool<GpuOps>,
    cache: KvCache,
}

impl DryRun {
    fn new(
        config: &DecoderConfig,
        gpu: &Gpu,
        kv: KvDtype,
        context: usize,
        stored: impl Fn(&Param) -> WeightFormat,
    ) -> Result<DryRun> {
        let mut ops = GpuOps::planning(gpu.clone(), kv);
        let mut parts = Parts::default();
        for param in joined_params(config) {
            match param.shape[..] {
                [rows, cols] if param.role.is_matrix() => {
                    parts.add_matrix(param.role, ops.plan_matrix(stored(&param), rows, cols));
                }
                _ => parts.add_vector(param.role, ops.upload(1, param.shape[0], &vec![0.0; param.shape[0]])?),
            }
        }
        let decoder = Decoder::new(&mut ops, config, parts, context)?;
        let (pool, cache) = KvPool::with_cache(&mut ops, config, context)?;
        Ok(DryRun { ops, decoder, pool, cache })
    }
}

/// The work of a GPU for some tokens of a model, recorded and not run.
pub struct PlannedWork {
    /// The dispatches in order.
    pub dispatches: Vec<Traced>,
    /// The problems for which their kernels have a choice, and how often each occurs.
    pub problems: Vec<(Problem, u32)>,
}

/// The work of `rows` tokens after `position` others, and of the greedy choice of the next token: one decoded token, or a
/// prompt. `gpu` may be a device that cannot run anything ([`Gpu::in_role`]).
///
/// Errors: a failure of the device.
pub fn planned_work(
    config: &DecoderConfig,
    format: &QuantFormat,
    gpu: &Gpu,
    kv: KvDtype,
    position: usize,
    rows: usize,
) -> Result<PlannedWork> {
    let context = position + rows + FEWEST_ROWS;
    let stored = ModelSize::stored_mlc(format);
    let DryRun { mut ops, decoder, mut pool, mut cache } = DryRun::new(config, gpu, kv, context, stored)?;
    if position > 0 {
        let tokens = vec![0; position];
        decoder.hidden(&mut ops, &mut pool, &mut [Sequence { tokens: &tokens, cache: &mut cache }]);
        ops.recorder().take_trace();
    }
    gpu.note_problems();
    let tokens = vec![0; rows];
    let logits = decoder.forward(&mut ops, &mut pool, &mut [Sequence { tokens: &tokens, cache: &mut cache }]);
    ops.plan_choice(&logits);
    Ok(PlannedWork { dispatches: ops.recorder().take_trace(), problems: gpu.noted_problems() })
}

/// Numbers of rows for which kernels choose differently.
const ROWS: [usize; 5] = [1, PREFILL_CHUNK, 64, 32, FEWEST_ROWS];
/// More of them, which only many conversations have often enough to repay tuning.
const ROWS_TOGETHER: [usize; 4] = [8, 4, 2, 3];
/// How many of [`ROWS`], from the first, have their kernels compiled at load.
const COMPILED: usize = 2;

impl Plan {
    /// The plan of a model that needs this memory, and whose parameters have the formats `stored` on the device.
    pub fn new(
        config: &DecoderConfig,
        gpu: &Gpu,
        kv: KvDtype,
        need: &Need,
        stored: impl Fn(&Param) -> WeightFormat,
    ) -> Result<Plan> {
        let context = need.context.min(PREFILL_CHUNK + FEWEST_ROWS);
        let together = ROWS_TOGETHER.into_iter().filter(|_| need.conversations > 1);
        let DryRun { mut ops, decoder, mut pool, mut cache } = DryRun::new(config, gpu, kv, context, stored)?;
        let (mut problems, mut kernels): (Vec<Problem>, Vec<(&'static Kernel, Variant)>) = Default::default();
        let mut variants: Vec<(&'static str, Variant)> = Vec::new();
        for (place, rows) in ROWS.into_iter().chain(together).enumerate().filter(|(_, rows)| *rows <= context) {
            cache.truncate(0);
            gpu.note_problems();
            let tokens = vec![0; rows];
            let logits = decoder.forward(&mut ops, &mut pool, &mut [Sequence { tokens: &tokens, cache: &mut cache }]);
            ops.plan_choice(&logits);
            let mut noted = gpu.noted_problems();
            noted.sort_by_cached_key(|(problem, count)| {
                std::cmp::Reverse(u64::from(*count).saturating_mul(problem.cost(gpu.caps())))
            });
            problems.extend(noted.into_iter().map(|(problem, _)| problem));
            let new = add_new(&mut variants, &mut ops);
            if place < COMPILED {
                kernels.extend(new);
            }
        }
        // Short prompts and guesses; and the head for every row, as for the losses of a text.
        for rows in (2..FEWEST_ROWS).chain(ROWS).filter(|rows| *rows <= context) {
            cache.truncate(0);
            let tokens = vec![0; rows];
            let hidden = decoder.hidden(&mut ops, &mut pool, &mut [Sequence { tokens: &tokens, cache: &mut cache }]);
            decoder.head(&mut ops, &hidden);
            add_new(&mut variants, &mut ops);
        }
        let mut known = std::collections::HashSet::new();
        problems.retain(|problem| known.insert(*problem));
        let most_rows = ROWS.into_iter().filter(|rows| *rows <= context).max().unwrap_or_default();
        let workload = Workload { variants, most_rows, ..workload(config, &ops) };
        Ok(Plan { problems, kernels, workload })
    }
}

/// Adds the recorded kernels with new variants to `variants`, and returns them.
fn add_new(variants: &mut Vec<(&'static str, Variant)>, ops: &mut GpuOps) -> Vec<(&'static Kernel, Variant)> {
    let mut new: Vec<(&'static Kernel, Variant)> = Vec::new();
    for traced in ops.recorder().take_trace() {
        if !variants.iter().any(|(name, of)| *name == traced.kernel.name && *of == traced.variant) {
            variants.push((traced.kernel.name, traced.variant.clone()));
            new.push((traced.kernel, traced.variant));
        }
    }
    new
}

/// The kernels of a model, for the self-test.
fn workload(config: &DecoderConfig, ops: &GpuOps) -> Workload {
    let mut attention: Vec<AttentionShape> = Vec::new();
    for layer in 0..config.layer_windows.len() {
        let shape = attention_shape(config, layer);
        if !attention.contains(&shape) {
            attention.push(shape);
        }
    }
    Workload {
        matrices: ops.kinds().to_vec(),
        attention,
        kv: ops.kv_dtype(),
        activation: config.hidden_act,
        norm_heads: config.qk_norm,
        soft_cap: config.final_logit_softcapping.is_some(),
        variants: Vec::new(),
        most_rows: 0,
    }
}

#[cfg(all(test, feature = "native"))]
mod tests {
    use std::path::Path;

    use model_format::ChatConfig;
    use webgpu_kernels::{gpu::OpenOptions, selftest};

    use super::*;
    use crate::device::{MatrixStorage, test_gpu::gpu_for_test};

    /// The self-test covers a model: each of its variants has a case.
    #[test]
    fn every_variant_of_a_model_has_a_case() {
        let mut count = 0;
        for (profile, options) in OpenOptions::PROFILES {
            let Some(gpu) = gpu_for_test(options) else { return };
            let arch = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/arch");
            for folder in std::fs::read_dir(arch).unwrap() {
                let file = folder.unwrap().path().join("q4f16_1/mlc-chat-config.json");
                let config = ChatConfig::parse(&std::fs::read_to_string(&file).unwrap()).unwrap();
                let config = DecoderConfig::from_mlc(&config).unwrap();
                for name in ["q4f16_1", "q0f16"] {
                    let format = QuantFormat::by_name(name).unwrap();
                    for kv in [KvDtype::F16, KvDtype::Q8] {
                        let stored = ModelSize::stored_mlc(format);
                        let storage = MatrixStorage::Packed;
                        let size = ModelSize::of_mlc(&config, format, storage, kv).with_conversations(Some(2));
                        let need = size.need(&config, 4096);
                        let Plan { workload, .. } = Plan::new(&config, &gpu, kv, &need, stored).unwrap();
                        count += workload.variants.len();
                        let unchecked = selftest::unchecked(&gpu, &workload);
                        assert!(unchecked.is_empty(), "{profile} {} {name} {kv:?}: {unchecked:?}", file.display());
                    }
                }
            }
        }
        assert!(count > 1000, "{count}");
    }
}
