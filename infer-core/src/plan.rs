//! [`Plan`]: which kernels a model will be run with on a GPU, in which variants and shapes, known before a byte of it is loaded.
//!
//! The decoder is run over operations that are recorded and thrown away, so whatever it does is in the plan. What takes time
//! besides the weights' way to the device can so be done meanwhile: compiling, and finding out what is fastest.

use model_format::{DecoderConfig, Param, params::joined_params};
use webgpu_kernels::{
    Gpu, Kernel, KvDtype, Variant, WeightFormat, attention::HeadShape, selftest::Workload, tuning::Problem,
};

use crate::{
    Result,
    model::{Decoder, Parts, Sequence, decoder::FEWEST_ROWS, session::PREFILL_CHUNK},
    ops::gpu::GpuOps,
};

/// Which kernels a model will be run with.
pub(crate) struct Plan {
    /// What they are to do, what takes most of the time of a decoded token first, then of prompts.
    pub problems: Vec<Problem>,
    /// What there is to compile for a decoded token and a long prompt.
    pub kernels: Vec<(&'static Kernel, Variant)>,
    /// What there is to check.
    pub workload: Workload,
}

/// Numbers of rows that a model is run with, of which kernels take notice.
const ROWS: [usize; 5] = [1, PREFILL_CHUNK, 64, 32, FEWEST_ROWS];
/// The first of them, whose kernels are compiled at once.
const COMPILED: usize = 2;

impl Plan {
    /// The plan of a model whose parameters are `stored` like this on the device.
    pub fn new(
        config: &DecoderConfig,
        gpu: &Gpu,
        kv: KvDtype,
        context: usize,
        stored: impl Fn(&Param) -> WeightFormat,
    ) -> Result<Plan> {
        let mut ops = GpuOps::planning(gpu.clone(), kv);
        let mut parts = Parts::default();
        for param in joined_params(config) {
            match param.shape[..] {
                [rows, cols] if param.role.is_matrix() => {
                    parts.add_matrix(param.role, ops.plan_matrix(stored(&param), rows, cols));
                }
                _ => parts.add_vector(
                    param.role,
                    crate::ops::Ops::upload(&mut ops, 1, param.shape[0], &vec![0.0; param.shape[0]])?,
                ),
            }
        }
        let context = context.min(PREFILL_CHUNK + FEWEST_ROWS);
        let decoder = Decoder::new(&mut ops, config, parts, context)?;
        let mut cache = crate::KvCache::new(&mut ops, config, context)?;
        let (mut problems, mut kernels): (Vec<Problem>, Vec<(&'static Kernel, Variant)>) = Default::default();
        for (place, rows) in ROWS.into_iter().enumerate().filter(|(_, rows)| *rows <= context) {
            cache.truncate(0);
            gpu.note_problems();
            let tokens = vec![0; rows];
            let logits = decoder.forward(&mut ops, &mut [Sequence { tokens: &tokens, cache: &mut cache }]);
            ops.plan_choice(&logits);
            let mut noted = gpu.noted_problems();
            noted.sort_by_cached_key(|(problem, count)| {
                std::cmp::Reverse(u64::from(*count).saturating_mul(problem.cost(gpu.caps())))
            });
            problems.extend(noted.into_iter().map(|(problem, _)| problem));
            for traced in ops.recorder().take_trace() {
                let is_known =
                    kernels.iter().any(|(kernel, of)| kernel.name == traced.kernel.name && *of == traced.variant);
                if place < COMPILED && !is_known {
                    kernels.push((traced.kernel, traced.variant));
                }
            }
        }
        let mut known = std::collections::HashSet::new();
        problems.retain(|problem| known.insert(*problem));
        Ok(Plan { problems, kernels, workload: workload(config, &ops) })
    }
}

/// What a model asks of the kernels.
fn workload(config: &DecoderConfig, ops: &GpuOps) -> Workload {
    let group = config.num_attention_heads / config.num_key_value_heads;
    let mut attention: Vec<HeadShape> = Vec::new();
    for window in &config.layer_windows {
        let soft_cap = config.attn_logit_softcapping.is_some();
        let heads = HeadShape { group, head_dim: config.head_dim, soft_cap, window: window.is_some() };
        if !attention.contains(&heads) {
            attention.push(heads);
        }
    }
    Workload {
        matrices: ops.kinds().to_vec(),
        attention,
        kv: ops.kv_dtype(),
        activation: config.hidden_act,
        norm_heads: config.qk_norm,
        soft_cap: config.final_logit_softcapping.is_some(),
    }
}
