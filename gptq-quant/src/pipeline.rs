//! Layer after layer: runs the calibration windows, quantizes each matrix with the inputs it really gets, and goes on
//! with the quantized one.
//!
//! `main.rs` calls [`quantize_layers`]. Hidden states of all windows lie on the device as far as there is room, the others
//! in host memory; of the weights only those of one part of a layer are loaded at a time. Within a layer the order is that of the data: q, k and v (which share their inputs), then o, then
//! gate and up, then down, each with inputs from the quantized matrices before it.

use std::{
    rc::Rc,
    time::{Duration, Instant},
};

use calib_data::TokenWindows;
use half::f16;
use infer_core::{
    model::{
        Layer, Parts,
        decoder::{RopeTables, embed},
    },
    ops::{KvShape, Ops, Span, TokenWeights},
};
use model_format::{
    Checkpoint, DecoderConfig, Param, Role, Weight, checkpoint::read_param, params, params::joined_params,
    tensor_cache::ShardSum,
};
use ndarray::ArrayView2;
use rayon::prelude::*;

use crate::{
    Error, Hessian, MatrixReport, Result, Settings, Store,
    calibrate::Calibrate,
    checkpoint::unquantized_config,
    estimate::{Estimate, Memory, Timings, memory},
    gptq::Quantized,
    observe::{Activation, ObserveOps, Pass, PlacedMatrix},
    speed::Speeds,
    work::Work,
};

/// A layer of the float model, from its beginning to its end.
pub(crate) const WHOLE_LAYER: Pass = Pass { start: None, stop: None };

/// How far the quantizer has come. The terminal's bar implements it.
pub trait Progress {
    /// The model wrote `done` of `total` tokens of calibration text.
    fn wrote(&mut self, done: usize, total: usize);
    /// `fraction` of the whole work is done; `module` is being worked on.
    fn advanced(&mut self, layer: usize, module: &str, fraction: f64);
    /// What all of it will take.
    fn estimated(&mut self, estimate: &Estimate) {
        let _ = estimate;
    }
    /// A matrix is done.
    fn quantized(&mut self, report: &MatrixReport);
    /// `fraction` of the measurement on another text is done.
    fn evaluated(&mut self, fraction: f64) {
        let _ = fraction;
    }
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

/// Quantizes every layer matrix of `checkpoint`, and with [`Settings::quantize_ends`] before them the embedding table and
/// the head, calibrated on `windows`, and hands each to `store`.
///
/// What the store has already is not computed again, and what follows is the same to the bit.
pub async fn quantize_layers<O: Calibrate>(
    ops: O,
    checkpoint: &dyn Checkpoint,
    windows: &TokenWindows,
    settings: &Settings,
    progress: &mut dyn Progress,
    store: &mut dyn Store,
) -> Result<Timings> {
    let config = unquantized_config(checkpoint)?;
    let list = joined_params(&config);
    let param = |role: Role| list.iter().find(|p| p.role == role).expect("the list has every role");

    settings.check(checkpoint, &config)?;
    let mut walk = Walk::new(ops, checkpoint, &config, windows, settings, progress).await?;
    let table = walk.ends(store, param).await?;
    walk.begin(table).await?;
    for layer in 0..config.num_hidden_layers {
        let [qkv, attention_out, gate_up, down] = matrix_roles(layer);
        walk.enter(layer)?;
        let pass = Pass { start: None, stop: Some(qkv) };
        let weight = walk.weight_of(store, param(qkv), &[], pass, Kept::Neither).await?;

        let pass = Pass { start: None, stop: Some(attention_out) };
        let weight = walk.weight_of(store, param(attention_out), &[weight], pass, Kept::End).await?;

        let pass = Pass { start: Some(attention_out), stop: Some(gate_up) };
        let gate_up_weight = walk.weight_of(store, param(gate_up), &[weight], pass, Kept::Beginning).await?;

        let keep = walk.tokens() * config.intermediate_size * size_of::<f32>() * walk.streams.len() <= walk.room;
        let pass = Pass { start: Some(gate_up), stop: Some(down) };
        let kept = if keep { Kept::End } else { Kept::Neither };
        let weight = walk.weight_of(store, param(down), std::slice::from_ref(&gate_up_weight), pass, kept).await?;

        if layer + 1 < config.num_hidden_layers {
            if keep {
                let pass = Pass { start: Some(down), stop: None };
                walk.run(&[weight], pass, Kept::Beginning, None).await?;
            } else {
                let pass = Pass { start: Some(gate_up), stop: None };
                walk.run(&[gate_up_weight, weight], pass, Kept::Neither, None).await?;
            }
        }
    }
    Ok(walk.timings)
}

/// Reads every parameter once: shapes, and that all values are finite. Long work begins with weights that are whole. The
/// sum of all that the result depends on.
pub fn check_weights(checkpoint: &dyn Checkpoint) -> Result<String> {
    let config = unquantized_config(checkpoint)?;
    let sum_of = |bytes: &[u8]| {
        let mut sum = ShardSum::default();
        sum.update(bytes);
        sum.finish()
    };
    let list = params(&config);
    let sums = list.par_iter().map(|param| {
        read_param(checkpoint, param)?;
        param.sources.iter().map(|part| Ok(sum_of(&checkpoint.tensor(&part.name)?.bytes))).collect::<Result<String>>()
    });
    let mut sums = sums.collect::<Result<Vec<_>>>()?;
    let mut files = checkpoint.companion_files()?;
    files.sort();
    sums.extend(files.iter().map(|(name, content)| format!("{name} {}", sum_of(content))));
    Ok(sum_of(sums.join(" ").as_bytes()))
}

/// The matrices of a layer, in the order of the forward pass.
pub(crate) fn matrix_roles(layer: usize) -> [Role; 4] {
    [Role::Qkv(layer), Role::AttentionOut(layer), Role::GateUp(layer), Role::Down(layer)]
}

/// Whether the inputs of a matrix are kept between two passes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kept {
    /// Not in this pass.
    Neither,
    /// Those of the matrix that the pass begins with were.
    Beginning,
    /// Those of the matrix that the pass ends at are to be.
    End,
}

/// The activations of all windows in one of the models, batch by batch.
struct Stream<O: Ops> {
    /// The residual stream `[rows, hidden_size]`.
    hidden: Vec<Held<Activation<O::Tensor>>>,
    /// The inputs of a matrix `[rows, cols]`, if they are kept.
    kept: Vec<Held<Rc<O::Tensor>>>,
}

/// Activations between two passes.
enum Held<T> {
    /// Where they were computed.
    Device(T),
    /// In host memory, for want of room there.
    Host(Vec<f32>),
}

/// The calibration windows on their way through the layers.
struct Walk<'a, O: Calibrate> {
    ops: ObserveOps<O>,
    checkpoint: &'a dyn Checkpoint,
    config: &'a DecoderConfig,
    settings: &'a Settings,
    progress: &'a mut dyn Progress,
    windows: &'a TokenWindows,
    rope: RopeTables<ObserveOps<O>>,
    /// Keys and values of the windows of one batch.
    kv: Vec<O::Kv>,
    seq_len: usize,
    /// In the model that is quantized so far, and where drift is corrected in the float model too.
    streams: Vec<Stream<O>>,
    /// Bytes of activations that there is still room for on the device.
    room: usize,
    /// And how many there were.
    all_room: usize,
    layer: usize,
    /// Norms and biases of the layer.
    vectors: Vec<(Role, Weight)>,
    work: Work,
    timings: Timings,
    /// Is there when everything before it is.
    mark: O::Tensor,
}

impl<'a, O: Calibrate> Walk<'a, O> {
    /// Before the first layer, without activations yet.
    async fn new(
        mut ops: O,
        checkpoint: &'a dyn Checkpoint,
        config: &'a DecoderConfig,
        windows: &'a TokenWindows,
        settings: &'a Settings,
        progress: &'a mut dyn Progress,
    ) -> Result<Walk<'a, O>> {
        let seq_len = windows.seq_len();
        let mut tokens = windows.iter().flatten();
        if let Some(&token) = tokens.find(|&&token| token as usize >= config.vocab_size) {
            return Err(Error::UnknownToken { token, vocab_size: config.vocab_size });
        }
        let shape = KvShape { kv_heads: config.num_key_value_heads, capacity: seq_len, head_dim: config.head_dim };
        let widest = config.qkv_size().max(2 * config.intermediate_size);
        let batch = (ops.batch_tokens(widest) / seq_len).clamp(1, windows.len());
        let speeds = Speeds::measure(&mut ops, config, settings).await?;
        let work = Work::new(config, seq_len, windows.len(), settings, speeds)?;
        let tokens = windows.len() * seq_len;
        let of_device = ops.device_memory();
        let Memory { host, device, room } = memory(config, tokens, batch * seq_len, settings, O::ON_HOST, of_device)?;
        let time = Duration::from_secs_f64(work.total);
        progress.estimated(&Estimate { time, host_memory: host, device_memory: device });
        let mark = ops.upload(1, 1, &[0.0])?;
        let mut ops = ObserveOps::new(ops);
        Ok(Walk {
            rope: RopeTables::new(&mut ops, config, seq_len)?,
            kv: (0..batch).map(|_| ops.new_kv(shape)).collect::<Result<_, _>>()?,
            ops,
            checkpoint,
            config,
            settings,
            progress,
            windows,
            seq_len,
            work,
            timings: Timings::default(),
            mark,
            streams: Vec::new(),
            room,
            all_room: room,
            layer: 0,
            vectors: Vec::new(),
        })
    }

    /// Goes to the first layer: with the quantized table if there is one, and where drift is to be corrected, with the
    /// float model beside it.
    async fn begin(&mut self, table: Option<Vec<f32>>) -> Result<()> {
        let table = match table {
            Some(table) => table,
            None => self.read(Role::Embedding)?,
        };
        self.drop_streams();
        let stream = self.embed(table).await?;
        self.streams.push(stream);
        if self.settings.matrix.gptaq_alpha != 0.0 {
            let stream = self.embed(self.read(Role::Embedding)?).await?;
            self.streams.push(stream);
        }
        Ok(())
    }

    fn drop_streams(&mut self) {
        self.streams.clear();
        self.room = self.all_room;
    }

    /// The windows as rows of `table`.
    async fn embed(&mut self, table: Vec<f32>) -> Result<Stream<O>> {
        let shape = vec![self.config.vocab_size, self.config.hidden_size];
        let table = self.ops.upload_matrix(Role::Embedding, Weight::F32 { shape, data: table })?;
        let windows: Vec<&[u32]> = self.windows.iter().collect();
        let mut hidden = Vec::new();
        for batch in windows.chunks(self.kv.len()) {
            let rows = embed(&mut self.ops, self.config, &table, &batch.concat());
            let bytes = batch.len() * self.seq_len * self.config.hidden_size * size_of::<f32>();
            hidden.push(if bytes <= self.room {
                self.room -= bytes;
                Held::Device(rows)
            } else {
                Held::Host(self.ops.read(&rows).await?)
            });
        }
        Ok(Stream { hidden, kept: Vec::new() })
    }

    /// The embedding table and the head, where they are to be quantized: the values of the table.
    async fn ends<'p>(&mut self, store: &mut dyn Store, param: impl Fn(Role) -> &'p Param) -> Result<Option<Vec<f32>>> {
        if !(self.settings.quantize_ends || self.settings.lm_head) {
            return Ok(None);
        }
        let roles =
            if self.config.tie_word_embeddings { vec![Role::Embedding] } else { vec![Role::LmHead, Role::Embedding] };
        // A table that is also the head is wanted for its outputs; one that is not, for its rows.
        let mut hessian = None;
        let mut values = None;
        for (i, role) in roles.into_iter().enumerate() {
            let param = param(role);
            values = store.values(param)?;
            if values.is_some() || self.settings.options(param)?.is_none() {
                self.work.done += if i == 0 { self.work.ends_time() } else { 0.0 };
                continue;
            }
            if i == 0 {
                hessian = Some(self.observe_head().await?);
            }
            let hessian = match hessian.take() {
                Some(hessian) => hessian,
                None => {
                    let hessian = Hessian::empty(self.config.hidden_size);
                    let resident = self.ops.inner().place(&hessian)?;
                    (hessian, resident)
                }
            };
            let quantized = self.solve(store, param, hessian).await?;
            values = Some(quantized.dequantize().into_raw_vec_and_offset().0);
        }
        Ok(values)
    }

    /// Runs the float model to its end: the Hessian of the head's inputs.
    async fn observe_head(&mut self) -> Result<(Hessian, O::Resident)> {
        let stream = self.embed(self.read(Role::Embedding)?).await?;
        self.streams.push(stream);
        for layer in 0..self.config.num_hidden_layers {
            self.enter(layer)?;
            let weights = matrix_roles(layer).map(|role| Ok((role, self.weight(role)?)));
            let weights: Vec<_> = weights.into_iter().collect::<Result<_>>()?;
            self.run(&weights, WHOLE_LAYER, Kept::Neither, None).await?;
        }
        let hidden_size = self.config.hidden_size;
        let norm = self.read(Role::FinalNorm)?;
        let norm = self.ops.upload(1, hidden_size, &norm)?;
        let weights = self.token_weights();
        let mut sums = self.ops.inner().new_sums(hidden_size, weights, false)?;
        for held in std::mem::take(&mut self.streams[0].hidden) {
            let x = match held {
                Held::Device(x) => x,
                Held::Host(values) => self.ops.upload(values.len() / hidden_size, hidden_size, &values)?,
            };
            let normed = self.ops.rms_norm(&x, &norm, self.config.rms_norm_eps as f32).known();
            self.ops.inner().add(&mut sums, &normed, None).await?;
        }
        Ok(self.ops.inner().finish(sums).await?)
    }

    fn tokens(&self) -> usize {
        self.windows.len() * self.seq_len
    }

    fn token_weights(&self) -> TokenWeights {
        self.settings.token_weight.in_windows(self.seq_len)
    }

    /// Turns to a layer.
    fn enter(&mut self, layer: usize) -> Result<()> {
        self.layer = layer;
        let roles = params(self.config).into_iter().map(|param| param.role);
        let vectors = roles.filter(|role| role.layer() == Some(layer) && !role.is_matrix());
        self.vectors = vectors.map(|role| Ok((role, self.weight(role)?))).collect::<Result<_>>()?;
        Ok(())
    }

    /// The float model's values of a parameter.
    fn read(&self, role: Role) -> Result<Vec<f32>> {
        let Weight::F32 { data, .. } = self.weight(role)? else { unreachable!("read as f32") };
        Ok(data)
    }

    /// A parameter of the float model.
    fn weight(&self, role: Role) -> Result<Weight> {
        let list = joined_params(self.config);
        let param = list.iter().find(|p| p.role == role).expect("the list has every role");
        Ok(Weight::F32 { shape: param.shape.clone(), data: read_param(self.checkpoint, param)? })
    }

    /// A matrix as the quantized model has it, after the part of the layer that ends at it has run with `matrices`.
    async fn weight_of(
        &mut self,
        store: &mut dyn Store,
        param: &Param,
        matrices: &[(Role, Weight)],
        pass: Pass,
        kept: Kept,
    ) -> Result<(Role, Weight)> {
        let known = store.values(param)?;
        let is_solved = known.is_none() && self.settings.options(param)?.is_some();
        let data = if is_solved {
            let hessian = self.observe(matrices, pass, kept).await?;
            self.solve(store, param, hessian).await?.dequantize().into_raw_vec_and_offset().0
        } else {
            match kept {
                Kept::Neither => self.work.done += self.work.pass_time(pass),
                Kept::Beginning | Kept::End => self.run(matrices, pass, kept, None).await?,
            }
            match known {
                Some(values) => {
                    self.work.done += self.work.solve_time(param.shape[0], param.shape[1]);
                    values
                }
                // As the checkpoint will hold it.
                None => self.read(param.role)?.into_iter().map(|v| f16::from_f32(v).to_f32()).collect(),
            }
        };
        Ok((param.role, Weight::F32 { shape: param.shape.clone(), data }))
    }

    /// Runs a part of the layer that ends at a matrix: the Hessian of its inputs.
    async fn observe(&mut self, matrices: &[(Role, Weight)], pass: Pass, kept: Kept) -> Result<(Hessian, O::Resident)> {
        let role = pass.stop.expect("a pass that observes has an end");
        let cols = input_cols(self.config, role);
        let (weights, with_drift) = (self.token_weights(), self.streams.len() > 1);
        let mut sums = self.ops.inner().new_sums(cols, weights, with_drift)?;
        self.run(matrices, pass, kept, Some(&mut sums)).await?;
        let begun = Instant::now();
        let hessian = self.ops.inner().finish(sums).await?;
        self.timings.hessian += begun.elapsed();
        Ok(hessian)
    }

    /// Runs a part of the layer over every window. `matrices` are those that it multiplies with. Its effect on the
    /// residual streams stays; to `sums` the inputs of its end are added.
    async fn run(
        &mut self,
        matrices: &[(Role, Weight)],
        pass: Pass,
        kept: Kept,
        mut sums: Option<&mut O::Sums>,
    ) -> Result<()> {
        let mut layers = vec![self.upload_layer(matrices.to_vec())?];
        if self.streams.len() > 1 {
            let float = matrices
                .iter()
                .map(|(role, weight)| Ok((*role, Weight::F32 { shape: weight.shape(), data: self.read(*role)? })));
            let float = float.collect::<Result<_>>()?;
            layers.push(self.upload_layer(float)?);
        }
        let hidden_size = self.config.hidden_size;
        let begun = Instant::now();
        let mut forward_share = 1.0;
        for batch in 0..self.streams[0].hidden.len() {
            let first = batch * self.kv.len();
            let windows = self.kv.len().min(self.windows.len() - first);
            let rows = windows * self.seq_len;
            let mut observed = Vec::with_capacity(layers.len());
            for (stream, layer) in self.streams.iter_mut().zip(&layers) {
                let held = std::mem::replace(&mut stream.hidden[batch], Held::Host(Vec::new()));
                let (mut x, on_host) = match held {
                    Held::Device(x) => (x, None),
                    Held::Host(values) => (self.ops.upload(rows, hidden_size, &values)?, Some(values)),
                };
                let input = match kept {
                    Kept::Beginning => Some(match std::mem::replace(&mut stream.kept[batch], Held::Host(Vec::new())) {
                        Held::Device(input) => {
                            self.room += kept_bytes(self.config, pass.start, rows);
                            input
                        }
                        Held::Host(values) => Rc::new(self.ops.inner().upload(rows, values.len() / rows, &values)?),
                    }),
                    Kept::Neither | Kept::End => None,
                };
                self.ops.begin(pass, input);
                let kv = self.kv.iter_mut().take(windows);
                let mut spans: Vec<_> = kv.map(|kv| Span { rows: self.seq_len, past_len: 0, kv }).collect();
                let rope = self.rope.table(self.rope.is_long(self.seq_len));
                let delta = layer.forward(&mut self.ops, &mut x, rope, &mut spans);
                if pass.stop.is_some() {
                    observed.push(self.ops.take_observed());
                }
                self.ops.add_assign(&mut x, &delta);
                let is_changed = pass.start.is_some() || pass.stop.is_none();
                stream.hidden[batch] = match on_host {
                    None => Held::Device(x),
                    Some(_) if is_changed => Held::Host(self.ops.read(&x).await?),
                    Some(values) => Held::Host(values),
                };
            }
            // A device works behind the host's back; the first batch tells how its time is divided.
            if batch == 0 && sums.is_some() {
                self.ops.inner().read(&self.mark).await?;
            }
            let forward = begun.elapsed();
            if let Some(sums) = sums.as_deref_mut() {
                let [x, float @ ..] = &observed[..] else { panic!("a pass that adds to sums has an end") };
                self.ops.inner().add(sums, x, float.first().map(|x| &**x)).await?;
                if batch == 0 {
                    self.ops.inner().read(&self.mark).await?;
                    forward_share = forward.as_secs_f64() / begun.elapsed().as_secs_f64();
                }
            }
            if kept == Kept::End {
                for (stream, observed) in self.streams.iter_mut().zip(observed) {
                    let bytes = kept_bytes(self.config, pass.stop, rows);
                    stream.kept.push(if bytes <= self.room {
                        self.room -= bytes;
                        Held::Device(observed)
                    } else {
                        Held::Host(self.ops.inner().read(&observed).await?)
                    });
                }
            }
            self.advance(pass, rows as f64 / self.tokens() as f64)?;
        }
        if kept == Kept::Beginning {
            self.streams.iter_mut().for_each(|stream| stream.kept.clear());
        }
        self.ops.inner().read(&self.mark).await?;
        let forward = begun.elapsed().mul_f64(forward_share);
        self.timings.forward += forward;
        self.timings.hessian += begun.elapsed() - forward;
        Ok(())
    }

    /// The layer with these matrices; the others are absent.
    fn upload_layer(&mut self, matrices: Vec<(Role, Weight)>) -> Result<Layer<ObserveOps<O>>> {
        let mut parts = Parts::default();
        for (role, weight) in &self.vectors {
            parts.add(&mut self.ops, *role, weight.clone())?;
        }
        for role in matrix_roles(self.layer) {
            parts.add_matrix(role, PlacedMatrix::absent(role));
        }
        for (role, weight) in matrices {
            parts.add(&mut self.ops, role, weight)?;
        }
        Ok(Layer::new(self.config, &mut parts, self.layer))
    }

    /// Quantizes one matrix. Without a token in its Hessian it is rounded to nearest.
    async fn solve(
        &mut self,
        store: &mut dyn Store,
        param: &Param,
        (hessian, resident): (Hessian, O::Resident),
    ) -> Result<Quantized> {
        let options = self.settings.options(param)?.expect("a matrix that is to be quantized");
        let begun = Instant::now();
        let (rows, cols) = (param.shape[0], param.shape[1]);
        let values = read_param(self.checkpoint, param)?;
        let weights = ArrayView2::from_shape((rows, cols), &values).expect("read_param checked the shape");
        if (0..cols).any(|i| !hessian.products[(i, i)].is_finite()) {
            let module = param.name.strip_suffix(".weight").unwrap_or(&param.name).to_owned();
            return Err(Error::NonFiniteActivations { module });
        }
        let mut factoring = Duration::ZERO;
        let ops = self.ops.inner();
        let quantized = ops.solve(weights, &hessian, &resident, &options, &mut factoring).await?;
        let solved = begun.elapsed();
        let report = MatrixReport::new(param, weights, &quantized, &hessian.products, &options);
        let report = MatrixReport { elapsed: solved, ..report };
        store.add(param, &quantized, &report)?;
        self.timings.factoring += factoring;
        self.timings.quantization += solved - factoring;
        self.timings.report += begun.elapsed() - solved;
        self.progress.quantized(&report);
        self.work.done += self.work.solve_time(rows, cols);
        Ok(quantized)
    }

    fn advance(&mut self, pass: Pass, share: f64) -> Result<()> {
        self.work.done += share * self.work.pass_time(pass);
        let [qkv, attention_out, gate_up, _] = matrix_roles(self.layer);
        let module = match pass.stop {
            Some(role) if role == qkv => "qkv",
            Some(role) if role == attention_out => "o",
            Some(role) if role == gate_up => "gate_up",
            _ if pass == WHOLE_LAYER => "head",
            _ => "down",
        };
        self.progress.advanced(self.layer, module, (self.work.done / self.work.total).min(1.0));
        if self.progress.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
    }
}

/// Inputs of a matrix of a layer.
fn input_cols(config: &DecoderConfig, role: Role) -> usize {
    match role {
        Role::AttentionOut(_) => config.num_attention_heads * config.head_dim,
        Role::Down(_) => config.intermediate_size,
        _ => config.hidden_size,
    }
}

/// Bytes of the inputs of a matrix.
fn kept_bytes(config: &DecoderConfig, role: Option<Role>, rows: usize) -> usize {
    rows * input_cols(config, role.expect("inputs of a matrix are kept")) * size_of::<f32>()
}
