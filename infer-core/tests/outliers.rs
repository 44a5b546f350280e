//! Outliers: activations up to 1e5 in every architecture.
//!
//! Scales the weights of the golden models by powers of two. The residual stream becomes 2^17 times as large, some channels of
//! the gate 2^12 times, some keys and values 2^8 times, but the function stays the same. So the recorded logits of transformers
//! must still come out.

mod common;

use common::{Golden, nmse, profiles};
use infer_core::{
    Decoder, KvDtype, KvPool, block_on,
    model::{Parts, Sequence},
    ops::{Ops, candle::CandleOps, gpu::GpuOps},
};
use model_format::{
    Checkpoint, DecoderConfig, Param, Role, SafetensorsCheckpoint, Weight, checkpoint::read_param,
    params::joined_params,
};

const ARCHITECTURES: [&str; 8] = ["llama", "phi3", "qwen2", "qwen3", "mistral", "phi3-longrope", "gemma2", "gemma3"];

/// Scale of the residual stream.
const STREAM: f32 = 131_072.0;
/// Scale of every seventh channel of the feed-forward, between gate and output projection.
const GATED: f32 = 4096.0;
/// Scale of every fifth element of value heads and key heads. Queries are scaled by the inverse. The values fit into f16.
const CACHED: f32 = 256.0;

fn is_gated(channel: usize) -> bool {
    channel % 7 == 2
}

/// True if an element of a head is scaled. Both elements of a rotated pair are scaled alike.
fn is_cached(config: &DecoderConfig, element: usize) -> bool {
    let pair = if element < config.rotary_dim { element % (config.rotary_dim / 2) } else { element };
    pair % 5 == 1
}

/// A golden model and its scaled weights.
struct Source {
    checkpoint: SafetensorsCheckpoint,
    config: DecoderConfig,
    /// True if the outputs of blocks are normed before they are added to the residual stream. Then these norms are scaled.
    norms_outputs: bool,
}

impl Source {
    fn open(golden: &Golden) -> Source {
        let checkpoint = SafetensorsCheckpoint::open(&golden.folder("hf")).unwrap();
        let config = DecoderConfig::from_hf(checkpoint.config_json()).unwrap();
        let norms_outputs = joined_params(&config).iter().any(|param| matches!(param.role, Role::DownNorm(_)));
        Source { checkpoint, config, norms_outputs }
    }

    /// True if every norm is applied to the residual stream. Then epsilon is scaled too, and the function is exactly the same.
    fn is_exact(&self) -> bool {
        !self.config.qk_norm && !self.norms_outputs
    }

    /// The scale of an element of a parameter: `row` is an output, `col` an input.
    fn scale(&self, role: Role, row: usize, col: usize) -> f32 {
        let DecoderConfig { num_attention_heads, num_key_value_heads, head_dim, intermediate_size, .. } = self.config;
        let if_cached = |at: usize, by: f32| if is_cached(&self.config, at % head_dim) { by } else { 1.0 };
        let out = if self.norms_outputs { 1.0 } else { STREAM };
        match role {
            Role::Embedding | Role::AttentionOutNorm(_) | Role::DownNorm(_) => STREAM,
            Role::FinalNorm if self.config.tie_word_embeddings => 1.0 / STREAM,
            // Values are scaled. Queries and keys too, unless they are normed: then the norms are scaled.
            Role::Qkv(_) | Role::QkvBias(_) => match row / head_dim {
                head if head >= num_attention_heads + num_key_value_heads => if_cached(row, CACHED),
                _ if self.config.qk_norm => 1.0,
                head if head >= num_attention_heads => if_cached(row, CACHED),
                _ => if_cached(row, 1.0 / CACHED),
            },
            Role::QueryNorm(_) => if_cached(row, 1.0 / CACHED),
            Role::KeyNorm(_) => if_cached(row, CACHED),
            Role::AttentionOut(_) => out * if_cached(col, 1.0 / CACHED),
            Role::AttentionOutBias(_) => out,
            Role::GateUp(_) if row >= intermediate_size && is_gated(row - intermediate_size) => GATED,
            Role::Down(_) => out * if is_gated(col) { 1.0 / GATED } else { 1.0 },
            _ => 1.0,
        }
    }

    fn weight(&self, param: &Param) -> Weight {
        let mut data = read_param(&self.checkpoint, param).unwrap();
        let cols = if param.role.is_matrix() { param.shape[1] } else { 1 };
        for (i, value) in data.iter_mut().enumerate() {
            *value *= self.scale(param.role, i / cols, i % cols);
        }
        Weight::F32 { shape: param.shape.clone(), data }
    }

    fn decoder<O: Ops>(&self, ops: &mut O) -> Decoder<O> {
        let mut config = self.config.clone();
        if self.is_exact() {
            config.rms_norm_eps *= f64::from(STREAM).powi(2);
        }
        let mut parts = Parts::default();
        for param in joined_params(&config) {
            parts.add(ops, param.role, self.weight(&param)).unwrap();
        }
        Decoder::new(ops, &config, parts, 128).unwrap()
    }
}

/// The logits at every position of a prefill, and those at the last position when the last three tokens are decoded.
async fn logits<O: Ops>(ops: &mut O, decoder: &Decoder<O>, ids: &[u32]) -> [Vec<f32>; 2] {
    let (mut pool, mut cache) = KvPool::with_cache(ops, decoder.config(), ids.len()).unwrap();
    let hidden = decoder.hidden(ops, &mut pool, &mut [Sequence { tokens: ids, cache: &mut cache }]);
    let logits = decoder.head(ops, &hidden);
    let whole = ops.read(&logits).await.unwrap();
    cache.truncate(ids.len() - 3);
    let mut last = Vec::new();
    for token in &ids[ids.len() - 3..] {
        let logits = decoder.forward(ops, &mut pool, &mut [Sequence { tokens: &[*token], cache: &mut cache }]);
        last = ops.read(&logits).await.unwrap();
    }
    [whole, last]
}

fn check(found: &[Vec<f32>; 2], expected: &[f32], limit: f64, what: &str) {
    let last = &expected[expected.len() - found[1].len()..];
    for (found, expected) in found.iter().zip([expected, last]) {
        assert!(found.iter().all(|logit| logit.is_finite()), "{what}: not finite");
        let error = nmse(found, expected);
        println!("{what}: nmse {error:e}");
        assert!(error <= limit, "{what}: nmse {error:e}");
    }
}

#[test]
fn outliers_do_not_change_the_logits() {
    let profiles = profiles();
    for arch in ARCHITECTURES {
        let golden = Golden::open(&format!("arch/{arch}"));
        let source = Source::open(&golden);
        let ids = golden.tensors("logits.safetensors").ids("ids_0");
        let last_layer = format!("layer_{}", source.config.num_hidden_layers - 1);
        let stream = golden.tensors("states_0.safetensors").f32(&last_layer);
        let largest = stream.iter().fold(0.0f32, |largest, value| largest.max(value.abs())) * STREAM;
        assert!(largest > 1e5, "{arch}: the residual stream reaches {largest}");

        let mut cpu = CandleOps::default();
        let decoder = source.decoder(&mut cpu);
        let of_cpu = block_on(logits(&mut cpu, &decoder, &ids));
        let recorded = golden.tensors("logits.safetensors").f32("logits_0");
        // An epsilon that is not scaled matters less next to a larger stream.
        let (recorded_limit, expected) = if source.is_exact() { (1e-9, &recorded) } else { (1e-2, &of_cpu[0]) };
        check(&of_cpu, &recorded, recorded_limit, &format!("{arch}, CPU"));
        for (profile, gpu) in &profiles {
            for (kv, limit) in [(KvDtype::F32, 1e-9), (KvDtype::F16, 1e-5)] {
                let mut ops = GpuOps::new(gpu.clone(), kv);
                let decoder = source.decoder(&mut ops);
                check(
                    &block_on(logits(&mut ops, &decoder, &ids)),
                    expected,
                    limit,
                    &format!("{arch}, {profile}, {kv:?}"),
                );
            }
        }
    }
}
