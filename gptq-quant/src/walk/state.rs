//! [`Walk`]: the state of a run on its way through the layers.

use std::time::Instant;

use calib_data::TokenWindows;
use half::{f16, slice::HalfFloatSliceExt};
use infer_core::{
    check_ids,
    model::{KvWindows, Layer, Parts, decoder::RopeTables, decoder::embed},
    ops::{Backend, Loading},
};
use model_format::{Checkpoint, DecoderConfig, Param, Role, Weight, params, params::joined_params};
use rayon::prelude::*;
use webgpu_kernels::gram::TokenWeights;

use super::{
    activations::{LayerMatrix, Stored, Stream},
    layer::{input_bytes, matrix_roles, writes_stream},
    memory::Memory,
    observe::{ObserveOps, Pass, PlacedMatrix},
    pending::PendingMatrix,
    time_left::{Stage, TimeLeft},
    timings::Timings,
};
use crate::{
    calibrate::{Calibrate, DeviceFacts},
    error::{Error, Result},
    input::source::read_values,
    progress::Progress,
    settings::Settings,
    store::Store,
};

/// The calibration windows on their way through the layers.
pub(super) struct Walk<'a, O: Calibrate> {
    pub(super) ops: ObserveOps<O>,
    pub(super) device: DeviceFacts,
    pub(super) checkpoint: &'a dyn Checkpoint,
    pub(super) config: &'a DecoderConfig,
    pub(super) settings: &'a Settings,
    progress: &'a mut dyn Progress,
    pub(super) windows: &'a TokenWindows,
    pub(super) rope: RopeTables<ObserveOps<O>>,
    /// Keys and values of the windows of a batch.
    pub(super) kv: O::Kv,
    /// Their pages.
    pub(super) kv_windows: KvWindows,
    pub(super) seq_len: usize,
    /// Activations in the model quantized so far. If drift is corrected, also those in the float model.
    pub(super) streams: Vec<Stream<O>>,
    /// Bytes of activations that the device still has room for.
    pub(super) room: usize,
    memory: Memory,
    pub(super) layer: usize,
    /// Norms and biases of the layer.
    vectors: Vec<(Role, Weight)>,
    time_left: TimeLeft,
    stage_begun: Instant,
    pub(super) timings: Timings,
    /// The matrix that was solved last and is not in the store yet.
    pub(super) pending: Option<PendingMatrix>,
    /// A device value. Reading it waits for all earlier work of the device.
    pub(super) fence: O::Tensor,
}

impl<'a, O: Calibrate> Walk<'a, O> {
    /// A walk before the first layer, without activations. Plans and reports the memory.
    pub(super) fn new(
        mut ops: O,
        checkpoint: &'a dyn Checkpoint,
        config: &'a DecoderConfig,
        windows: &'a TokenWindows,
        settings: &'a Settings,
        progress: &'a mut dyn Progress,
        time_left: TimeLeft,
    ) -> Result<Walk<'a, O>> {
        let seq_len = windows.seq_len();
        windows.iter().try_for_each(|window| check_ids(window, config.vocab_size))?;
        let device = ops.facts();
        let widest = config.qkv_size().max(2 * config.intermediate_size);
        let most_tokens = (device.most_values / widest).min(device.most_tokens);
        let batch = (most_tokens / seq_len).clamp(1, windows.len());
        let memory = Memory::plan(config, windows.len() * seq_len, batch * seq_len, settings, device)?;
        progress.planned_memory(memory.host, memory.device);
        let fence = ops.upload(1, 1, &[0.0])?;
        let mut ops = ObserveOps::new(ops);
        let kv_windows = KvWindows::new(batch, seq_len);
        Ok(Walk {
            rope: RopeTables::new(&mut ops, config, seq_len)?,
            kv: ops.new_kv(kv_windows.shape(config))?,
            kv_windows,
            ops,
            device,
            checkpoint,
            config,
            settings,
            progress,
            windows,
            seq_len,
            streams: Vec::new(),
            room: memory.activations,
            memory,
            layer: 0,
            vectors: Vec::new(),
            time_left,
            stage_begun: Instant::now(),
            timings: Timings::default(),
            pending: None,
            fence,
        })
    }

    /// Puts the windows in front of the first layer: in the quantized model, whose embedding `table` is given if it was
    /// quantized, and if drift is corrected, in the float model too.
    pub(super) async fn begin_layers(&mut self, table: Option<Vec<f32>>) -> Result<()> {
        let table = match table {
            Some(table) => table,
            None => self.read(Role::Embedding)?,
        };
        self.streams.clear();
        self.room = self.memory.activations;
        self.add_stream(table).await?;
        if self.settings.streams() > 1 {
            self.add_stream(self.read(Role::Embedding)?).await?;
        }
        self.stage_begun = Instant::now();
        Ok(())
    }

    /// Adds a model whose residual stream is the windows' rows of `table`.
    pub(super) async fn add_stream(&mut self, table: Vec<f32>) -> Result<()> {
        let shape = vec![self.config.vocab_size, self.config.hidden_size];
        let table = self.ops.upload_matrix(Role::Embedding, Weight::F32 { shape, data: table })?;
        let windows: Vec<&[u32]> = self.windows.iter().collect();
        let mut hidden = Vec::new();
        for batch in windows.chunks(self.kv_windows.count()) {
            let rows = embed(&mut self.ops, self.config, &table, &batch.concat());
            let bytes = batch.len() * self.seq_len * self.config.hidden_size * size_of::<f32>();
            hidden.push(if bytes <= self.room {
                self.room -= bytes;
                Stored::Device(rows)
            } else {
                Stored::Host(self.ops.read(&rows).await?)
            });
        }
        self.streams.push(Stream { hidden, inputs: Vec::new() });
        Ok(())
    }

    /// Moves to a layer and reads its norms and biases.
    pub(super) fn enter(&mut self, layer: usize) -> Result<()> {
        self.layer = layer;
        let roles = params(self.config).into_iter().map(|param| param.role);
        let vectors = roles.filter(|role| role.layer() == Some(layer) && !role.is_matrix());
        self.vectors = vectors.map(|role| Ok((role, self.weight(role)?))).collect::<Result<_>>()?;
        Ok(())
    }

    pub(super) fn tokens(&self) -> usize {
        self.windows.len() * self.seq_len
    }

    pub(super) fn token_weights(&self) -> TokenWeights {
        self.settings.token_weight.in_windows(self.seq_len)
    }

    /// Reads the float model's values of a parameter.
    pub(super) fn read(&self, role: Role) -> Result<Vec<f32>> {
        read_values(self.checkpoint, &self.param(role))
    }

    fn weight(&self, role: Role) -> Result<Weight> {
        let param = self.param(role);
        let data = read_values(self.checkpoint, &param)?;
        Ok(Weight::F32 { shape: param.shape, data })
    }

    fn param(&self, role: Role) -> Param {
        let list = joined_params(self.config);
        list.into_iter().find(|param| param.role == role).expect("the list has every role")
    }

    /// The float model's matrix, to run in the quantized model too.
    pub(super) fn float_matrix(&self, role: Role) -> Result<LayerMatrix> {
        Ok(LayerMatrix { role, weight: self.weight(role)?, float: None })
    }

    /// True if the device has room to cache the inputs of a matrix in every model.
    pub(super) fn can_cache_inputs(&self, role: Role) -> bool {
        input_bytes(self.config, role, self.tokens()) * self.streams.len() <= self.room
    }

    /// True if a matrix needs [`Hessian::stream_drift`](crate::Hessian::stream_drift).
    pub(super) fn sums_stream_drift(&self, role: Role) -> bool {
        self.streams.len() > 1 && self.settings.matrix.stream_alpha != 0.0 && writes_stream(self.config, role)
    }

    /// The current layer with these matrices, in each of the models. Other matrices are absent.
    pub(super) fn upload_layers(&mut self, matrices: Vec<LayerMatrix>) -> Result<Vec<Layer<ObserveOps<O>>>> {
        let (mut of_quantized, mut of_float) = (Vec::new(), Vec::new());
        for LayerMatrix { role, weight, float } in matrices {
            if self.streams.len() > 1 {
                let data = match float {
                    Some(values) => values,
                    None => self.read(role)?,
                };
                of_float.push((role, Weight::F32 { shape: weight.shape(), data }));
            }
            of_quantized.push((role, weight));
        }
        let all = [of_quantized, of_float].into_iter().take(self.streams.len());
        all.map(|matrices| self.upload_layer(matrices)).collect()
    }

    fn upload_layer(&mut self, matrices: Vec<(Role, Weight)>) -> Result<Layer<ObserveOps<O>>> {
        let mut parts = Parts::default();
        for (role, weight) in &self.vectors {
            parts.add(&mut self.ops, *role, weight.clone())?;
        }
        for role in matrix_roles(self.layer) {
            parts.add_matrix(role, PlacedMatrix::absent(role));
        }
        for (role, weight) in matrices {
            let weight = if self.device.multiplies_f16 { to_f16_if_finite(weight) } else { weight };
            parts.add(&mut self.ops, role, weight)?;
        }
        Ok(Layer::new(self.config, &mut parts, self.layer))
    }

    /// Adds steps to the running stage: 1 for a matrix, the share of the text for a batch.
    pub(super) fn advance(&mut self, steps: f64) {
        self.time_left.advance(steps);
    }

    /// Ends the running stage.
    pub(super) fn finish_stage(&mut self) {
        self.time_left.finish_stage(self.stage_begun.elapsed());
        self.stage_begun = Instant::now();
    }

    /// Reports the progress during a pass. Errors: [`Error::Cancelled`].
    pub(super) fn report(&mut self, pass: Pass) -> Result<()> {
        let [qkv, attention_out, gate_up, _] = matrix_roles(self.layer);
        let module = match pass.stop {
            _ if self.time_left.stage() == Some(Stage::FloatLayer) => "head",
            Some(role) if role == qkv => "qkv",
            Some(role) if role == attention_out => "o",
            Some(role) if role == gate_up => "gate_up",
            _ => "down",
        };
        let left = self.time_left.left(self.stage_begun.elapsed());
        self.progress.advanced(self.layer, module, self.time_left.fraction(), left);
        if self.progress.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
    }

    /// Waits until the last solved matrix is in the store.
    pub(super) fn store_pending(&mut self, store: &mut dyn Store) -> Result<()> {
        let Some(pending) = self.pending.take() else { return Ok(()) };
        let begun = Instant::now();
        let report = pending.store(store)?;
        self.timings.report += begun.elapsed();
        self.progress.quantized(&report);
        Ok(())
    }
}

/// The weight in f16, or unchanged if a value overflows.
fn to_f16_if_finite(weight: Weight) -> Weight {
    /// Values per task.
    const CHUNK: usize = 1 << 16;
    match weight {
        Weight::F32 { shape, data } => {
            let mut narrow = vec![f16::ZERO; data.len()];
            let chunks = narrow.par_chunks_mut(CHUNK).zip(data.par_chunks(CHUNK));
            let fits = chunks.map(|(narrow, data)| {
                narrow.convert_from_f32_slice(data);
                narrow.iter().all(|value| value.is_finite())
            });
            if fits.reduce(|| true, |a, b| a && b) {
                Weight::F16 { shape, data: narrow }
            } else {
                Weight::F32 { shape, data }
            }
        }
        weight => weight,
    }
}
