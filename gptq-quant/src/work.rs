//! [`Work`]: how much there is to do and how much of it is done, in seconds as they were foreseen.

use model_format::{DecoderConfig, Role};

use crate::{
    Result, Settings,
    observe::Pass,
    pipeline::{WHOLE_LAYER, matrix_roles},
    settings::quantized_params,
    speed::Speeds,
};

/// What is done and to do, by which the time left is told.
#[derive(Default)]
pub(crate) struct Work {
    speeds: Speeds,
    pub(crate) done: f64,
    pub(crate) total: f64,
    layers: f64,
    tokens: f64,
    hidden: f64,
    attention: f64,
    qkv: f64,
    inner: f64,
    seq_len: f64,
    streams: f64,
    /// Whether the float model is run to its end first.
    runs_to_head: bool,
}

impl Work {
    pub(crate) fn new(
        config: &DecoderConfig,
        seq_len: usize,
        windows: usize,
        settings: &Settings,
        speeds: Speeds,
        knows_head_inputs: bool,
    ) -> Result<Work> {
        let mut work = Work {
            speeds,
            done: 0.0,
            total: 0.0,
            layers: 0.0,
            tokens: (windows * seq_len) as f64,
            hidden: config.hidden_size as f64,
            attention: (config.num_attention_heads * config.head_dim) as f64,
            qkv: config.qkv_size() as f64,
            inner: config.intermediate_size as f64,
            seq_len: seq_len as f64,
            runs_to_head: false,
            streams: if settings.matrix.gptaq_alpha == 0.0 { 1.0 } else { 2.0 },
        };
        let [qkv, attention_out, gate_up, down] = matrix_roles(0).map(Some);
        let passes = [(None, qkv), (None, attention_out), (attention_out, gate_up), (gate_up, down), (down, None)];
        let forward: f64 = passes.into_iter().map(|(start, stop)| work.pass_time(Pass { start, stop })).sum();
        let chosen = quantized_params(config, settings)?;
        let solve: f64 = chosen.iter().map(|(param, _)| work.solve_time(param.shape[0], param.shape[1])).sum();
        work.layers = config.num_hidden_layers as f64;
        let has_ends = settings.quantize_ends || settings.lm_head;
        work.runs_to_head = has_ends && !knows_head_inputs;
        work.total = work.layers * forward + solve + work.ends_time();
        Ok(work)
    }

    /// The float model to its end, for the inputs of the head, unless they are known.
    pub(crate) fn ends_time(&self) -> f64 {
        if self.runs_to_head { self.layers * self.pass_time(WHOLE_LAYER) } else { 0.0 }
    }

    /// The forward passes, half of X^T X, and with a second stream the whole product of its difference with X.
    pub(crate) fn pass_time(&self, pass: Pass) -> f64 {
        let Work { tokens, hidden, attention, qkv, inner, seq_len, streams, speeds, .. } = *self;
        let through_layer = tokens * speeds.forward + speeds.weights;
        if pass == WHOLE_LAYER {
            return through_layer;
        }
        // Of half of a window, the mean, scores and sums.
        let heads = seq_len * attention;
        let all = hidden * (qkv + attention + 3.0 * inner) + heads;
        let (forward, inputs) = match pass.stop {
            Some(Role::Qkv(_)) => (0.0, hidden),
            Some(Role::AttentionOut(_)) => (hidden * qkv + heads, attention),
            Some(Role::GateUp(_)) => (attention * hidden, hidden),
            Some(_) => (hidden * 2.0 * inner, inner),
            None => (inner * hidden, 0.0),
        };
        streams * through_layer * forward / all + tokens * (streams - 0.5) * inputs * inputs / speeds.gram
    }

    pub(crate) fn solve_time(&self, rows: usize, cols: usize) -> f64 {
        let (rows, cols) = (rows as f64, cols as f64);
        let each = cols * cols * cols / 3.0 / self.speeds.factors + cols * cols * self.speeds.hessian;
        each + rows * cols * cols / 2.0 / self.speeds.solve
    }
}
