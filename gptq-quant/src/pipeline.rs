//! Layer after layer: runs the calibration windows, quantizes each matrix with the inputs it really gets, and goes on
//! with the quantized one.
//!
//! `main.rs` calls [`quantize_layers`]. Hidden states of all windows lie on the device as far as there is room, the others
//! in host memory; of the weights only those of one part of a layer are loaded at a time. Within a layer the order is that of the data: q, k and v (which share their inputs), then o, then
//! gate and up, then down, each with inputs from the quantized matrices before it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use calib_data::TokenWindows;
use half::f16;
use infer_core::{
    check_ids,
    model::decoder::RopeTables,
    ops::{KvShape, Loading, TokenWeights},
};
use model_format::{
    Checkpoint, DecoderConfig, Param, Role, Weight,
    checkpoint::{read_float, read_param, read_rows},
    params,
    params::{Source, joined_params},
    tensor_cache::ShardSum,
};
use ndarray::ArrayView2;
use rayon::prelude::*;

use crate::{
    Error, HeadInputs, Hessian, MatrixReport, Result, Settings, Store,
    calibrate::Calibrate,
    checkpoint::unquantized_config,
    estimate::{Estimate, Memory, Timings, memory},
    finishing::Finishing,
    gptq::Quantized,
    observe::{ObserveOps, Pass},
    report::matrix::Sample,
    speed::Speeds,
    streams::{Kept, LayerMatrix, Stream, input_cols},
    work::{Step, Steps, Work, foreseen},
};

/// A layer of the float model, from its beginning to its end.
pub(crate) const WHOLE_LAYER: Pass = Pass { start: None, stop: None };

/// How far the quantizer has come. The terminal's bar implements it.
pub trait Progress {
    /// The model wrote `done` of `total` tokens of calibration text.
    fn wrote(&mut self, done: usize, total: usize);
    /// `fraction` of the whole work is done, and the rest will take `left`; `module` is being worked on.
    fn advanced(&mut self, layer: usize, module: &str, fraction: f64, left: Duration);
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
    fn advanced(&mut self, _layer: usize, _module: &str, _fraction: f64, _left: Duration) {}
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
    settings.check(checkpoint, &config)?;
    // Where the model wrote all of the text, what goes into its head is known.
    let seen = HeadInputs::joined(&store.head_inputs()?, windows.len(), config.hidden_size);
    let mut walk = Walk::new(ops, checkpoint, &config, windows, settings, progress)?;
    walk.estimate(store, seen.is_some()).await?;
    let done = all_layers(&mut walk, store, seen).await;
    // Whatever came after it, a matrix that was solved is not lost.
    done.and(walk.settle(store))?;
    Ok(walk.timings)
}

/// Everything, but that the last matrix is still to be waited for.
async fn all_layers<O: Calibrate>(walk: &mut Walk<'_, O>, store: &mut dyn Store, seen: Option<Hessian>) -> Result<()> {
    let config = walk.config;
    let list = joined_params(config);
    let param = |role: Role| list.iter().find(|p| p.role == role).expect("the list has every role");
    let table = walk.ends(store, param, seen).await?;
    walk.begin(table).await?;
    for layer in 0..config.num_hidden_layers {
        let [qkv, attention_out, gate_up, down] = matrix_roles(layer);
        let is_last = layer + 1 == config.num_hidden_layers;
        walk.enter(layer)?;
        if !walk.settings.true_sequential {
            walk.layer_at_once(store, matrix_roles(layer).map(param), is_last).await?;
            continue;
        }
        let pass = Pass { start: None, stop: Some(qkv) };
        let matrix = walk.matrix_of(store, param(qkv), Vec::new(), pass, Kept::Neither).await?;

        let pass = Pass { start: None, stop: Some(attention_out) };
        let matrix = walk.matrix_of(store, param(attention_out), vec![matrix], pass, Kept::End).await?;

        let pass = Pass { start: Some(attention_out), stop: Some(gate_up) };
        let gate_up_matrix = walk.matrix_of(store, param(gate_up), vec![matrix], pass, Kept::Beginning).await?;

        let keep = walk.has_room_for_inputs(down);
        let pass = Pass { start: Some(gate_up), stop: Some(down) };
        let kept = if keep { Kept::End } else { Kept::Neither };
        // They are wanted again where what they give is not kept.
        let again = (!keep && !is_last).then(|| gate_up_matrix.clone());
        let matrix = walk.matrix_of(store, param(down), vec![gate_up_matrix], pass, kept).await?;

        match again {
            _ if is_last => {}
            None => walk.run(vec![matrix], Pass { start: Some(down), stop: None }, Kept::Beginning, None).await?,
            Some(again) => {
                let pass = Pass { start: Some(gate_up), stop: None };
                walk.run(vec![again, matrix], pass, Kept::Neither, None).await?;
            }
        }
    }
    Ok(())
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
        // Not all values at a time: the table may be large, and there are as many parameters as threads.
        read_rows(checkpoint, param, 1024)?.try_for_each(|rows| rows.map(drop))?;
        let sum = param.sources.iter().map(|part| {
            let sum = sum_of(&checkpoint.tensor(&part.name)?.bytes);
            checkpoint.release(&part.name);
            Ok(sum)
        });
        sum.collect::<Result<String>>()
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

/// The calibration windows on their way through the layers.
pub(crate) struct Walk<'a, O: Calibrate> {
    pub(crate) ops: ObserveOps<O>,
    pub(crate) checkpoint: &'a dyn Checkpoint,
    pub(crate) config: &'a DecoderConfig,
    pub(crate) settings: &'a Settings,
    pub(crate) progress: &'a mut dyn Progress,
    pub(crate) windows: &'a TokenWindows,
    pub(crate) rope: RopeTables<ObserveOps<O>>,
    /// Keys and values of the windows of one batch.
    pub(crate) kv: Vec<O::Kv>,
    pub(crate) seq_len: usize,
    /// In the model that is quantized so far, and where drift is corrected in the float model too.
    pub(crate) streams: Vec<Stream<O>>,
    /// Bytes of activations that there is still room for on the device.
    pub(crate) room: usize,
    pub(crate) layer: usize,
    /// Norms and biases of the layer.
    pub(crate) vectors: Vec<(Role, Weight)>,
    pub(crate) work: Work,
    pub(crate) timings: Timings,
    /// When the last step was done.
    since: Instant,
    pub(crate) is_on_way_to_head: bool,
    /// A matrix that is solved and not in the store yet.
    finishing: Option<Finishing>,
    pub(crate) memory: Memory,
    /// Is there when everything before it is.
    pub(crate) mark: O::Tensor,
}

impl<'a, O: Calibrate> Walk<'a, O> {
    /// Before the first layer, without activations yet.
    fn new(
        mut ops: O,
        checkpoint: &'a dyn Checkpoint,
        config: &'a DecoderConfig,
        windows: &'a TokenWindows,
        settings: &'a Settings,
        progress: &'a mut dyn Progress,
    ) -> Result<Walk<'a, O>> {
        let seq_len = windows.seq_len();
        windows.iter().try_for_each(|window| check_ids(window, config.vocab_size))?;
        let shape = KvShape { kv_heads: config.num_key_value_heads, capacity: seq_len, head_dim: config.head_dim };
        let widest = config.qkv_size().max(2 * config.intermediate_size);
        let batch = (ops.batch_tokens(widest) / seq_len).clamp(1, windows.len());
        let tokens = windows.len() * seq_len;
        let of_device = ops.device_memory();
        let memory = memory(config, tokens, batch * seq_len, settings, O::ON_HOST, of_device)?;
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
            work: Work::default(),
            timings: Timings::default(),
            mark,
            streams: Vec::new(),
            room: memory.room,
            layer: 0,
            vectors: Vec::new(),
            since: Instant::now(),
            is_on_way_to_head: false,
            finishing: None,
            memory,
        })
    }

    /// Tells what there is to do, and what it will take.
    async fn estimate(&mut self, store: &dyn Store, knows_head_inputs: bool) -> Result<()> {
        let config = self.config;
        let streams = self.settings.streams();
        let Memory { host, device, keeps_inputs, .. } = self.memory;
        let adds_late = !O::ON_HOST && streams > 1 && keeps_inputs;
        let speeds = Speeds::measure(self, streams, adds_late).await?;
        let is_done = |param: &Param| store.has(param);
        let steps = Steps::new(config, self.settings, knows_head_inputs, keeps_inputs, is_done)?;
        self.work = Work::new(&steps, foreseen(config, self.seq_len, self.windows.len(), streams, &speeds));
        self.progress.estimated(&Estimate { time: self.work.left(), host_memory: host, device_memory: device });
        self.since = Instant::now();
        Ok(())
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
        if self.settings.streams() > 1 {
            let stream = self.embed(self.read(Role::Embedding)?).await?;
            self.streams.push(stream);
        }
        // None of the steps, and done once.
        self.since = Instant::now();
        Ok(())
    }

    pub(crate) fn tokens(&self) -> usize {
        self.windows.len() * self.seq_len
    }

    pub(crate) fn token_weights(&self) -> TokenWeights {
        self.settings.token_weight.in_windows(self.seq_len)
    }

    /// Turns to a layer.
    pub(crate) fn enter(&mut self, layer: usize) -> Result<()> {
        self.layer = layer;
        let roles = params(self.config).into_iter().map(|param| param.role);
        let vectors = roles.filter(|role| role.layer() == Some(layer) && !role.is_matrix());
        self.vectors = vectors.map(|role| Ok((role, self.weight(role)?))).collect::<Result<_>>()?;
        Ok(())
    }

    /// The float model's values of a parameter.
    pub(crate) fn read(&self, role: Role) -> Result<Vec<f32>> {
        let list = joined_params(self.config);
        let param = list.iter().find(|p| p.role == role).expect("the list has every role");
        read_values(self.checkpoint, param)
    }

    /// A parameter of the float model.
    pub(crate) fn weight(&self, role: Role) -> Result<Weight> {
        let list = joined_params(self.config);
        let param = list.iter().find(|p| p.role == role).expect("the list has every role");
        Ok(Weight::F32 { shape: param.shape.clone(), data: read_values(self.checkpoint, param)? })
    }

    /// A matrix as the float model has it, in the place of the quantized one.
    pub(crate) fn float_matrix(&self, role: Role) -> Result<LayerMatrix> {
        Ok(LayerMatrix { role, weight: self.weight(role)?, float: None })
    }

    /// Solves the matrices of a layer with the inputs that its float ones give, then runs it unless it is the last.
    async fn layer_at_once(&mut self, store: &mut dyn Store, params: [&Param; 4], is_last: bool) -> Result<()> {
        let mut solved = Vec::with_capacity(params.len());
        for (i, param) in params.iter().enumerate() {
            let before = params[..i].iter().map(|param| self.float_matrix(param.role)).collect::<Result<_>>()?;
            let pass = Pass { start: None, stop: Some(param.role) };
            solved.push(self.matrix_of(store, param, before, pass, Kept::Neither).await?);
        }
        if !is_last {
            self.run(solved, WHOLE_LAYER, Kept::Neither, None).await?;
        }
        Ok(())
    }

    /// A matrix as the quantized model has it, after the part of the layer that ends at it has run with `matrices`.
    async fn matrix_of(
        &mut self,
        store: &mut dyn Store,
        param: &Param,
        matrices: Vec<LayerMatrix>,
        pass: Pass,
        kept: Kept,
    ) -> Result<LayerMatrix> {
        let known = store.values(param)?;
        let is_solved = known.is_none() && self.settings.options(param)?.is_some();
        let mut float = None;
        let data = if is_solved {
            let hessian = self.observe(matrices, pass, kept).await?;
            let place = matrix_roles(self.layer).iter().position(|&role| role == param.role);
            let step = Step::Matrix(place.expect("a matrix of this layer"));
            let (quantized, values) = self.solve(store, param, hessian, step).await?;
            float = Some(values).filter(|_| self.streams.len() > 1);
            quantized.dequantize().into_raw_vec_and_offset().0
        } else {
            if kept != Kept::Neither {
                self.run(matrices, pass, kept, None).await?;
            }
            match known {
                Some(values) => values,
                // As the checkpoint will hold it.
                None => self.read(param.role)?.into_iter().map(|v| f16::from_f32(v).to_f32()).collect(),
            }
        };
        Ok(LayerMatrix { role: param.role, weight: Weight::F32 { shape: param.shape.clone(), data }, float })
    }

    /// Runs a part of the layer that ends at a matrix: the Hessian of its inputs.
    async fn observe(&mut self, matrices: Vec<LayerMatrix>, pass: Pass, kept: Kept) -> Result<(Hessian, O::Resident)> {
        let role = pass.stop.expect("a pass that observes has an end");
        let cols = input_cols(self.config, role);
        let (weights, with_drift) = (self.token_weights(), self.streams.len() > 1);
        let mut sums = self.ops.inner().new_sums(cols, weights, with_drift)?;
        if self.compares_streams(role) {
            self.ops.inner().expect_streams(&mut sums, self.config.hidden_size)?;
        }
        let is_late = kept == Kept::End && self.adds_drift_late(role);
        self.run(matrices, pass, kept, Some((&mut sums, is_late))).await?;
        let late = if is_late { self.kept_pairs() } else { Vec::new() };
        let begun = Instant::now();
        let hessian = self.ops.inner().finish(sums, &late).await?;
        self.timings.hessian += begun.elapsed();
        Ok(hessian)
    }

    /// Quantizes one matrix. Without a token in its Hessian it is rounded to nearest. With the values that it had.
    pub(crate) async fn solve(
        &mut self,
        store: &mut dyn Store,
        param: &Param,
        (hessian, resident): (Hessian, O::Resident),
        step: Step,
    ) -> Result<(Arc<Quantized>, Vec<f32>)> {
        // The one before is safe before this one could be lost, and all of the host is for this one.
        self.settle(store)?;
        let options = self.settings.options(param)?.expect("a matrix that is to be quantized");
        let begun = Instant::now();
        let (rows, cols) = (param.shape[0], param.shape[1]);
        let values = read_values(self.checkpoint, param)?;
        let weights = ArrayView2::from_shape((rows, cols), &values).expect("read_param checked the shape");
        if (0..cols).any(|i| !hessian.products[(i, i)].is_finite()) {
            let module = param.name.strip_suffix(".weight").unwrap_or(&param.name).to_owned();
            return Err(Error::NonFiniteActivations { module });
        }
        let mut factoring = Duration::ZERO;
        let ops = self.ops.inner();
        let quantized = ops.solve(weights, &hessian, &resident, &options, &mut factoring).await?;
        let (solved, quantized, sample) = (begun.elapsed(), Arc::new(quantized), Sample::of(weights));
        let writing = store.prepare(param, &quantized)?;
        let codes = Arc::clone(&quantized);
        self.finishing = Some(Finishing::begin(param, codes, sample, hessian.products, options, solved, writing));
        self.timings.factoring += factoring;
        self.timings.quantization += solved - factoring;
        self.step_done(step);
        Ok((quantized, values))
    }

    /// Sees to it that the matrix which was solved last is in the store.
    pub(crate) fn settle(&mut self, store: &mut dyn Store) -> Result<()> {
        let Some(finishing) = self.finishing.take() else { return Ok(()) };
        let begun = Instant::now();
        let report = finishing.end(store)?;
        self.timings.report += begun.elapsed();
        self.progress.quantized(&report);
        Ok(())
    }

    /// Notes that a step is done, which took all the time since the last one was.
    pub(crate) fn step_done(&mut self, step: Step) {
        self.work.finish(step, self.since.elapsed());
        self.since = Instant::now();
    }

    /// Tells how far it is, on a pass.
    pub(crate) fn tell(&mut self, pass: Pass) -> Result<()> {
        let [qkv, attention_out, gate_up, _] = matrix_roles(self.layer);
        let module = match pass.stop {
            Some(role) if role == qkv => "qkv",
            Some(role) if role == attention_out => "o",
            Some(role) if role == gate_up => "gate_up",
            _ if pass == WHOLE_LAYER => "head",
            _ => "down",
        };
        self.progress.advanced(self.layer, module, self.work.fraction(), self.work.left());
        if self.progress.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
    }
}

/// The values of a parameter, its parts read at the same time. What of its file is in memory may go.
fn read_values(checkpoint: &dyn Checkpoint, param: &Param) -> Result<Vec<f32>> {
    let values = if param.sources.len() == 1 || !param.role.is_matrix() {
        read_param(checkpoint, param)?
    } else {
        let read = |source: &Source| read_float(checkpoint, &source.name, &[source.rows, param.shape[1]]);
        param.sources.par_iter().map(read).collect::<model_format::Result<Vec<_>>>()?.concat()
    };
    param.sources.iter().for_each(|source| checkpoint.release(&source.name));
    Ok(values)
}
