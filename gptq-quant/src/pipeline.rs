//! Layer after layer: runs the calibration windows, quantizes each matrix with the inputs it really gets, and goes on
//! with the quantized one.
//!
//! `main.rs` calls [`quantize_layers`]. Hidden states of all windows lie in host memory; of the weights only one matrix
//! is loaded at a time. Within a layer the order is that of the data: q, k and v (which share their inputs), then o, then
//! gate and up, then down, each with inputs from the quantized matrices before it.

use std::time::{Duration, Instant};

use calib_data::TokenWindows;
use infer_core::{
    model::{Layer, Parts, decoder::rope_table},
    ops::{KvShape, Ops, Span},
};
use model_format::{Checkpoint, DecoderConfig, Param, Role, Weight, checkpoint::read_param, params};
use ndarray::ArrayView2;
use rayon::prelude::*;

use crate::{
    Error, Hessian, Result, TokenWeight,
    checkpoint::unquantized_config,
    gptq::{Method, Options, Quantized, quantize},
    observe::{ObserveOps, Pass, PlacedMatrix},
};

/// Tokens that are run at a time, if windows are shorter.
const BATCH_TOKENS: usize = 2048;

/// How to quantize a model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// How to quantize each matrix.
    pub matrix: Options,
    /// How much each calibration token counts.
    pub token_weight: TokenWeight,
    /// Bytes of feed-forward activations that may be kept between two passes; beyond that they are computed twice.
    pub activation_memory: usize,
}

impl Settings {
    /// What is best with these options.
    pub fn new(matrix: Options) -> Settings {
        Settings { matrix, token_weight: TokenWeight::default(), activation_memory: 1 << 30 }
    }
}

/// What became of one matrix.
#[derive(Debug, Clone, PartialEq)]
pub struct MatrixReport {
    /// Layer index.
    pub layer: usize,
    /// MLC's name of the module: `model.layers.0.self_attn.qkv_proj`.
    pub module: String,
    /// Squared error of the outputs on the calibration text, as a share of their own square.
    pub relative_error: f64,
    /// How the codes were found.
    pub method: Method,
    /// Time that the solution took, without the forward pass.
    pub elapsed: Duration,
}

/// How far the quantizer has come. The terminal's bar implements it.
pub trait Progress {
    /// The model wrote `done` of `total` tokens of calibration text.
    fn wrote(&mut self, done: usize, total: usize);
    /// `fraction` of the whole work is done; `module` is being worked on.
    fn advanced(&mut self, layer: usize, module: &str, fraction: f64);
    /// A matrix is done.
    fn quantized(&mut self, report: &MatrixReport);
    /// Whether to stop with [`Error::Cancelled`].
    fn is_cancelled(&self) -> bool {
        false
    }
}

/// Says nothing.
impl Progress for () {
    fn wrote(&mut self, _done: usize, _total: usize) {}
    fn advanced(&mut self, _layer: usize, _module: &str, _fraction: f64) {}
    fn quantized(&mut self, _report: &MatrixReport) {}
}

/// Quantizes every layer matrix of `checkpoint`, calibrated on `windows`, and hands each to `sink`.
pub async fn quantize_layers<O: Ops>(
    ops: O,
    checkpoint: &dyn Checkpoint,
    windows: &TokenWindows,
    settings: &Settings,
    progress: &mut dyn Progress,
    sink: &mut dyn FnMut(&Param, &Quantized) -> Result<()>,
) -> Result<()> {
    let config = unquantized_config(checkpoint)?;
    let list = params(&config);
    let param = |role: Role| list.iter().find(|p| p.role == role).expect("the list has every role");

    let mut walk = Walk::new(ops, checkpoint, &config, windows, settings, progress).await?;
    for layer in 0..config.num_hidden_layers {
        let [qkv, attention_out, gate_up, down] = matrix_roles(layer);
        let norms = [Role::InputNorm(layer), Role::PostAttentionNorm(layer)];
        walk.layer = layer;
        walk.norms = norms.map(|role| read_param(checkpoint, param(role))).into_iter().collect::<Result<_, _>>()?;
        let mut solve = |walk: &mut Walk<'_, O>, role: Role, hessian: Hessian| {
            let quantized = walk.solve(param(role), hessian)?;
            sink(param(role), &quantized)?;
            let shape = param(role).shape.clone();
            Ok::<_, Error>((role, Weight::F32 { shape, data: quantized.dequantize().into_raw_vec_and_offset().0 }))
        };

        let hessian = walk.observe(vec![], Pass { start: None, stop: Some(qkv) }, None, None).await?;
        let weight = solve(&mut walk, qkv, hessian)?;

        let mut attended = Vec::new();
        let pass = Pass { start: None, stop: Some(attention_out) };
        let hessian = walk.observe(vec![weight], pass, None, Some(&mut attended)).await?;
        let weight = solve(&mut walk, attention_out, hessian)?;

        let pass = Pass { start: Some(attention_out), stop: Some(gate_up) };
        let hessian = walk.observe(vec![weight], pass, Some(&attended), None).await?;
        drop(attended);
        let gate_up_weight = solve(&mut walk, gate_up, hessian)?;

        let mut activated = Vec::new();
        let keep = walk.tokens() * config.intermediate_size * size_of::<f32>() <= settings.activation_memory;
        let pass = Pass { start: Some(gate_up), stop: Some(down) };
        let again = if keep { vec![] } else { vec![gate_up_weight.clone()] };
        let hessian = walk.observe(vec![gate_up_weight], pass, None, keep.then_some(&mut activated)).await?;
        let weight = solve(&mut walk, down, hessian)?;

        if layer + 1 < config.num_hidden_layers {
            let start = Some(if keep { down } else { gate_up });
            let matrices = again.into_iter().chain([weight]).collect();
            walk.run(matrices, Pass { start, stop: None }, keep.then_some(&activated), &mut |_| {}).await?;
        }
    }
    Ok(())
}

/// Reads every parameter once: shapes, and that all values are finite. Long work begins with weights that are whole.
pub fn check_weights(checkpoint: &dyn Checkpoint) -> Result<()> {
    let config = unquantized_config(checkpoint)?;
    params(&config).par_iter().try_for_each(|param| read_param(checkpoint, param).map(drop))?;
    Ok(())
}

/// The matrices of a layer, in the order of the forward pass.
fn matrix_roles(layer: usize) -> [Role; 4] {
    [Role::Qkv(layer), Role::AttentionOut(layer), Role::GateUp(layer), Role::Down(layer)]
}

/// The calibration windows on their way through the layers.
struct Walk<'a, O: Ops> {
    ops: ObserveOps<O>,
    checkpoint: &'a dyn Checkpoint,
    config: &'a DecoderConfig,
    settings: &'a Settings,
    progress: &'a mut dyn Progress,
    rope: <ObserveOps<O> as Ops>::Tensor,
    /// Keys and values of the windows of one batch.
    kv: Vec<O::Kv>,
    seq_len: usize,
    /// The residual stream of all windows, `[windows * seq_len, hidden_size]`.
    hidden: Vec<f32>,
    layer: usize,
    /// Of the input and of the feed-forward.
    norms: Vec<Vec<f32>>,
    work: Work,
}

impl<'a, O: Ops> Walk<'a, O> {
    /// Embeds the windows.
    async fn new(
        ops: O,
        checkpoint: &'a dyn Checkpoint,
        config: &'a DecoderConfig,
        windows: &TokenWindows,
        settings: &'a Settings,
        progress: &'a mut dyn Progress,
    ) -> Result<Walk<'a, O>> {
        let mut ops = ObserveOps::new(ops);
        let seq_len = windows.seq_len();
        let list = params(config);
        let table = list.iter().find(|p| p.role == Role::Embedding).expect("the list has every role");
        let weight = Weight::F32 { shape: table.shape.clone(), data: read_param(checkpoint, table)? };
        let table = ops.upload_matrix(Role::Embedding, weight)?;
        let mut hidden = Vec::with_capacity(windows.len() * seq_len * config.hidden_size);
        for window in windows.iter() {
            if let Some(&token) = window.iter().find(|&&token| token as usize >= config.vocab_size) {
                return Err(Error::UnknownToken { token, vocab_size: config.vocab_size });
            }
            let rows = ops.embedding(&table, window);
            hidden.extend(ops.read(&rows).await?);
        }
        let shape = KvShape { kv_heads: config.num_key_value_heads, capacity: seq_len, head_dim: config.head_dim };
        let batch = (BATCH_TOKENS / seq_len).clamp(1, windows.len());
        Ok(Walk {
            rope: rope_table(&mut ops, config, seq_len)?,
            kv: (0..batch).map(|_| ops.new_kv(shape)).collect::<Result<_, _>>()?,
            ops,
            checkpoint,
            config,
            settings,
            progress,
            seq_len,
            hidden,
            layer: 0,
            norms: Vec::new(),
            work: Work::new(config, seq_len, windows.len()),
        })
    }

    fn tokens(&self) -> usize {
        self.hidden.len() / self.config.hidden_size
    }

    /// Runs a part of the layer that ends at a matrix: the Hessian of its inputs, which `keep` takes in.
    async fn observe(
        &mut self,
        matrices: Vec<(Role, Weight)>,
        pass: Pass,
        inputs: Option<&Vec<f32>>,
        mut keep: Option<&mut Vec<f32>>,
    ) -> Result<Hessian> {
        let role = pass.stop.expect("a pass that observes has an end");
        let cols = match role {
            Role::AttentionOut(_) => self.config.num_attention_heads * self.config.head_dim,
            Role::Down(_) => self.config.intermediate_size,
            _ => self.config.hidden_size,
        };
        let mut hessian = Hessian::new(cols, self.settings.token_weight);
        let mut add = |observed: Vec<f32>| {
            hessian.add(&observed);
            if let Some(keep) = &mut keep {
                keep.extend(observed);
            }
        };
        self.run(matrices, pass, inputs, &mut add).await?;
        Ok(hessian)
    }

    /// Runs a part of the layer over every window. `matrices` are those that it multiplies with, `inputs` those of the
    /// first where they are known. Its effect on the residual stream stays; `observe` gets the input of its end.
    async fn run(
        &mut self,
        matrices: Vec<(Role, Weight)>,
        pass: Pass,
        inputs: Option<&Vec<f32>>,
        observe: &mut dyn FnMut(Vec<f32>),
    ) -> Result<()> {
        let layer = self.upload_layer(matrices)?;
        let hidden_size = self.config.hidden_size;
        let batch = self.kv.len() * self.seq_len;
        for first in (0..self.tokens()).step_by(batch) {
            let rows = batch.min(self.tokens() - first);
            let input = inputs.map(|inputs| {
                let cols = inputs.len() / self.tokens();
                &inputs[first * cols..(first + rows) * cols]
            });
            let stream = first * hidden_size..(first + rows) * hidden_size;
            let mut x = self.ops.upload(rows, hidden_size, &self.hidden[stream.clone()])?;
            self.ops.begin(pass, rows, input)?;
            let kv = self.kv.iter_mut().take(rows / self.seq_len);
            let mut spans: Vec<_> = kv.map(|kv| Span { rows: self.seq_len, past_len: 0, kv }).collect();
            let delta = layer.forward(&mut self.ops, &mut x, &self.rope, &mut spans);
            if pass.stop.is_some() {
                observe(self.ops.read_observed().await?);
            }
            if pass.start.is_some() {
                self.ops.add_assign(&mut x, &delta);
                self.hidden[stream].copy_from_slice(&self.ops.read(&x).await?);
            }
            self.advance(pass, rows as f64 / self.tokens() as f64)?;
        }
        Ok(())
    }

    /// The layer with these matrices; the others are absent.
    fn upload_layer(&mut self, matrices: Vec<(Role, Weight)>) -> Result<Layer<ObserveOps<O>>> {
        let mut parts = Parts::default();
        for (role, values) in [Role::InputNorm(self.layer), Role::PostAttentionNorm(self.layer)].iter().zip(&self.norms)
        {
            parts.add(&mut self.ops, *role, Weight::F32 { shape: vec![values.len()], data: values.clone() })?;
        }
        for role in matrix_roles(self.layer) {
            parts.add_matrix(role, PlacedMatrix::absent(role));
        }
        for (role, weight) in matrices {
            parts.add(&mut self.ops, role, weight)?;
        }
        Ok(Layer::new(self.config, &mut parts, self.layer))
    }

    /// Quantizes one matrix.
    fn solve(&mut self, param: &Param, hessian: Hessian) -> Result<Quantized> {
        let begun = Instant::now();
        let module = param.name.strip_suffix(".weight").unwrap_or(&param.name).to_owned();
        let (rows, cols) = (param.shape[0], param.shape[1]);
        let values = read_param(self.checkpoint, param)?;
        let weights = ArrayView2::from_shape((rows, cols), &values).expect("read_param checked the shape");
        let hessian = hessian.matrix();
        if (0..cols).any(|i| !hessian[(i, i)].is_finite()) {
            return Err(Error::NonFiniteActivations { module });
        }
        let quantized = quantize(weights, &hessian, &self.settings.matrix);
        self.progress.quantized(&MatrixReport {
            layer: self.layer,
            module,
            relative_error: quantized.relative_error(weights, &hessian),
            method: quantized.method,
            elapsed: begun.elapsed(),
        });
        self.work.done += solve_cost(rows, cols);
        Ok(quantized)
    }

    fn advance(&mut self, pass: Pass, share: f64) -> Result<()> {
        self.work.done += share * self.work.pass_cost(pass);
        let [qkv, attention_out, gate_up, _] = matrix_roles(self.layer);
        let module = match pass.stop {
            Some(role) if role == qkv => "qkv",
            Some(role) if role == attention_out => "o",
            Some(role) if role == gate_up => "gate_up",
            _ => "down",
        };
        self.progress.advanced(self.layer, module, (self.work.done / self.work.total).min(1.0));
        if self.progress.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
    }
}

/// Multiplications done and to do, by which the time left is told.
struct Work {
    done: f64,
    total: f64,
    tokens: f64,
    hidden: f64,
    attention: f64,
    qkv: f64,
    inner: f64,
    seq_len: f64,
}

impl Work {
    fn new(config: &DecoderConfig, seq_len: usize, windows: usize) -> Work {
        let mut work = Work {
            done: 0.0,
            total: 0.0,
            tokens: (windows * seq_len) as f64,
            hidden: config.hidden_size as f64,
            attention: (config.num_attention_heads * config.head_dim) as f64,
            qkv: config.qkv_size() as f64,
            inner: config.intermediate_size as f64,
            seq_len: seq_len as f64,
        };
        let [qkv, attention_out, gate_up, down] = matrix_roles(0).map(Some);
        let passes = [(None, qkv), (None, attention_out), (attention_out, gate_up), (gate_up, down), (down, None)];
        let forward: f64 = passes.into_iter().map(|(start, stop)| work.pass_cost(Pass { start, stop })).sum();
        let solve: f64 = params(config)
            .iter()
            .filter(|param| param.role.is_layer_matrix() && param.role.layer() == Some(0))
            .map(|param| solve_cost(param.shape[0], param.shape[1]))
            .sum();
        work.total = config.num_hidden_layers as f64 * (forward + solve);
        work
    }

    /// The forward pass and half of X^T X.
    fn pass_cost(&self, pass: Pass) -> f64 {
        let Work { tokens, hidden, attention, qkv, inner, seq_len, .. } = *self;
        tokens
            * match pass.stop {
                Some(Role::Qkv(_)) => hidden * hidden / 2.0,
                Some(Role::AttentionOut(_)) => hidden * qkv + 2.0 * seq_len * attention + attention * attention / 2.0,
                Some(Role::GateUp(_)) => attention * hidden + hidden * hidden / 2.0,
                Some(_) => hidden * 2.0 * inner + inner * inner / 2.0,
                None => inner * hidden,
            }
    }
}

/// Factorization, inverse and compensation, in f64 and so at half the speed.
fn solve_cost(rows: usize, cols: usize) -> f64 {
    let (rows, cols) = (rows as f64, cols as f64);
    2.0 * (cols * cols * cols / 3.0 + rows * cols * cols / 2.0)
}
