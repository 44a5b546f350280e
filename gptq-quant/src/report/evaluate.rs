//! [`evaluate`]: compares the quantized model with the float model on a text: both perplexities, and the divergence of predictions.
//!
//! Both models run layer by layer, so that only one layer of each is on the device.

use std::ops::RangeInclusive;

use calib_data::{
    TokenWindows,
    perplexity::{first_loss, perplexity},
};
use infer_core::{
    check_ids,
    model::{
        KvWindows, Layer, Parts,
        decoder::{RopeTables, embed},
    },
    ops::Ops,
};
use model_format::{Checkpoint, DecoderConfig, Param, Role, Weight, checkpoint::read_param, params::joined_params};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    error::{Error, Result},
    progress::Progress,
    settings::DEFAULT_ACTIVATION_MEMORY,
};

/// Rows of logits in memory at a time: 256 rows of a vocabulary of 128,256 take 131 MB per model. Slow devices get fewer, so that
/// each submission is short.
const ROWS: RangeInclusive<usize> = 16..=256;

/// Quality of the quantized model on a text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// The text's name.
    pub text: String,
    /// The inputs of the evaluation by content: tokens, models, protocol, algorithm numbers. Null in reports of older versions.
    #[serde(default)]
    pub basis: Value,
    /// Tokens per window, including prefix tokens. Windows are independent ([`calib_data::perplexity`]).
    pub seq_len: usize,
    /// Perplexity of the float model.
    pub float_perplexity: f64,
    /// Perplexity of the quantized model.
    pub perplexity: f64,
    /// Mean Kullback-Leibler divergence of the quantized model's predictions from the float model's, in nats per token.
    pub divergence: f64,
    /// Per window: mean loss of the float model, of the quantized model, and mean divergence, in nats per token.
    pub windows: Vec<[f64; 3]>,
}

/// Runs both models on `windows` of the text named `text`. The first `prefix_len` tokens of each window are prefix tokens, whose
/// losses are not counted. `memory`: bytes of activations that may stay on the device. If fewer windows fit, layers are loaded once
/// per part that fits.
pub async fn evaluate<O: Ops>(
    ops: &mut O,
    [float, quantized]: [&dyn Checkpoint; 2],
    text: &str,
    windows: &TokenWindows,
    prefix_len: usize,
    memory: Option<usize>,
    progress: &mut dyn Progress,
) -> Result<Evaluation> {
    let seq_len = windows.seq_len();
    let mut models = [float, quantized].map(Model::new).into_iter().collect::<Result<Vec<_>>>()?;
    let hidden_size = models[0].config.hidden_size;
    let work = 2 * (models[0].config.vocab_size * hidden_size) as u64;
    let memory = memory.unwrap_or(DEFAULT_ACTIVATION_MEMORY);
    let at_once = (memory / (2 * seq_len * hidden_size * size_of::<f32>())).clamp(1, windows.len());
    let windows: Vec<&[u32]> = windows.iter().collect();
    windows.iter().try_for_each(|window| check_ids(window, models[0].config.vocab_size))?;
    let steps = windows.len().div_ceil(at_once) * 2 * models[0].config.num_hidden_layers;
    let mut results = Vec::with_capacity(windows.len());
    let mut step = 0u32;
    for part in windows.chunks(at_once) {
        let mut advance = || {
            step += 1;
            progress.evaluated(f64::from(step) / steps as f64);
            if progress.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
        };
        let before = models[0].hidden(ops, part, &mut advance)?;
        let after = models[1].hidden(ops, part, &mut advance)?;
        let heads = [models[0].head(ops)?, models[1].head(ops)?];
        for ((window, before), after) in part.iter().zip(before).zip(after) {
            let mut sums = [0.0; 3];
            let mut first = first_loss(prefix_len);
            while first < seq_len - 1 {
                let step = ops.rows_at_once(work).clamp(*ROWS.start(), *ROWS.end());
                let rows: Vec<usize> = (first..(seq_len - 1).min(first + step)).collect();
                let targets = &window[first + 1..=first + rows.len()];
                let [x, y] = [(0, &before), (1, &after)].map(|(model, hidden)| {
                    let block = ops.select_rows(hidden, &rows);
                    models[model].logits(ops, &block, &heads[model])
                });
                let of_rows = [
                    ops.cross_entropy(&x, targets).await?,
                    ops.cross_entropy(&y, targets).await?,
                    ops.kl_divergence(&x, &y, rows.len()).await?,
                ];
                for (sum, values) in sums.iter_mut().zip(of_rows) {
                    *sum += values.iter().map(|&v| f64::from(v)).sum::<f64>();
                }
                first += rows.len();
            }
            results.push(sums.map(|sum| sum / (seq_len - 1 - first_loss(prefix_len)) as f64));
        }
    }
    let of = |i: usize| results.iter().map(|result| result[i]).collect::<Vec<f64>>();
    Ok(Evaluation {
        text: text.to_owned(),
        basis: Value::Null,
        seq_len,
        float_perplexity: perplexity(&of(0)),
        perplexity: perplexity(&of(1)),
        divergence: of(2).iter().sum::<f64>() / results.len() as f64,
        windows: results,
    })
}

/// The float or the quantized model.
struct Model<'a> {
    checkpoint: &'a dyn Checkpoint,
    config: DecoderConfig,
    list: Vec<Param>,
}

impl<'a> Model<'a> {
    fn new(checkpoint: &'a dyn Checkpoint) -> Result<Model<'a>> {
        let config = DecoderConfig::from_hf(checkpoint.config_json())?;
        Ok(Model { checkpoint, list: joined_params(&config), config })
    }

    fn weight(&self, role: Role) -> Result<Option<Weight>> {
        let Some(param) = self.list.iter().find(|param| param.role == role) else { return Ok(None) };
        Ok(Some(Weight::F32 { shape: param.shape.clone(), data: read_param(self.checkpoint, param)? }))
    }

    /// The normed outputs `[seq_len, hidden_size]` of the last layer, per window.
    fn hidden<O: Ops>(
        &mut self,
        ops: &mut O,
        windows: &[&[u32]],
        advance: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Vec<O::Tensor>> {
        let config = &self.config;
        let seq_len = windows[0].len();
        let rope = RopeTables::new(ops, config, seq_len)?;
        let rope = rope.table(rope.is_long(seq_len));
        let kv_window = KvWindows::new(1, seq_len);
        let mut kv = ops.new_kv(kv_window.shape(config))?;
        let rows = ops.place_rows(&kv_window.spans(1));
        let table = self.weight(Role::Embedding)?.expect("the list has every role");
        let table = ops.upload_matrix(Role::Embedding, table)?;
        let mut hidden: Vec<_> = windows.iter().map(|window| embed(ops, config, &table, window)).collect();
        drop(table);
        for i in 0..config.num_hidden_layers {
            let mut parts = Parts::default();
            for param in self.list.iter().filter(|param| param.role.layer() == Some(i)) {
                parts.add(ops, param.role, self.weight(param.role)?.expect("a parameter of the list"))?;
            }
            let layer = Layer::new(config, &mut parts, i);
            for x in &mut hidden {
                let delta = layer.forward(ops, x, rope, &mut kv, &rows);
                ops.add_assign(x, &delta);
            }
            advance()?;
        }
        let Some(Weight::F32 { data, .. }) = self.weight(Role::FinalNorm)? else { unreachable!("read as f32") };
        let norm = ops.upload(1, config.hidden_size, &data)?;
        Ok(hidden.iter().map(|x| ops.rms_norm(x, &norm, config.rms_norm_eps as f32)).collect())
    }

    fn head<O: Ops>(&self, ops: &mut O) -> Result<O::Matrix> {
        let head = match self.weight(Role::LmHead)? {
            Some(head) => head,
            None => self.weight(Role::Embedding)?.expect("the list has every role"),
        };
        Ok(ops.upload_matrix(Role::LmHead, head)?)
    }

    fn logits<O: Ops>(&self, ops: &mut O, hidden: &O::Tensor, head: &O::Matrix) -> O::Tensor {
        let mut logits = ops.linear(hidden, head);
        if let Some(cap) = self.config.final_logit_softcapping {
            ops.soft_cap(&mut logits, cap as f32);
        }
        logits
    }
}
