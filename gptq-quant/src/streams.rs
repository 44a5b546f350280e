//! The activations of all windows between two passes, and a pass over them.
//!
//! `pipeline.rs` says which part of a layer runs next; here it runs, batch by batch, in the model that is quantized so far
//! and where drift is made good in the float one.

use std::{rc::Rc, time::Instant};

use half::{f16, slice::HalfFloatSliceExt};
use infer_core::{
    model::{Layer, Parts, decoder::embed},
    ops::{Backend, Forward, Loading, Ops, Span},
};
use model_format::{DecoderConfig, Role, Weight, params::joined_params};
use rayon::prelude::*;

use crate::{
    Result,
    calibrate::{Calibrate, Pair},
    observe::{Activation, ObserveOps, Pass, PlacedMatrix},
    pipeline::{Walk, matrix_roles},
    work::Step,
};

/// Whether the inputs of a matrix are kept between two passes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kept {
    /// Not in this pass.
    Neither,
    /// Those of the matrix that the pass begins with were.
    Beginning,
    /// Those of the matrix that the pass ends at are to be.
    End,
}

/// The activations of all windows in one of the models, batch by batch.
pub(crate) struct Stream<O: Ops> {
    /// The residual stream `[rows, hidden_size]`.
    pub(crate) hidden: Vec<Held<Activation<O::Tensor>>>,
    /// The inputs of a matrix `[rows, cols]`, if they are kept.
    kept: Vec<Held<Rc<O::Tensor>>>,
}

/// Activations between two passes.
pub(crate) enum Held<T> {
    /// Where they were computed.
    Device(T),
    /// In host memory, for want of room there.
    Host(Vec<f32>),
}

/// A matrix that the next pass multiplies with.
#[derive(Clone)]
pub(crate) struct LayerMatrix {
    pub(crate) role: Role,
    /// As the model that is quantized so far has it.
    pub(crate) weight: Weight,
    /// The float model's values, if they are known already.
    pub(crate) float: Option<Vec<f32>>,
}

impl<O: Calibrate> Walk<'_, O> {
    pub(crate) fn drop_streams(&mut self) {
        self.streams.clear();
        self.room = self.memory.room;
    }

    /// The windows as rows of `table`.
    pub(crate) async fn embed(&mut self, table: Vec<f32>) -> Result<Stream<O>> {
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

    /// Whether the inputs of a matrix may stay on the device, in every model.
    pub(crate) fn has_room_for_inputs(&self, role: Role) -> bool {
        kept_bytes(self.config, Some(role), self.tokens()) * self.streams.len() <= self.room
    }

    /// Whether the drift of a matrix's inputs, which are kept, is added up when the host has something to do: with its
    /// sums, that is half of what there is to add.
    pub(crate) fn adds_drift_late(&self, role: Role) -> bool {
        !O::ON_HOST && self.streams.len() > 1 && self.has_room_for_inputs(role)
    }

    /// Whether the outputs of a matrix are to make good how the residual stream that they are added to has drifted. They are
    /// not where a norm comes between.
    pub(crate) fn compares_streams(&self, role: Role) -> bool {
        self.streams.len() > 1 && self.could_compare_streams(role)
    }

    /// The same, if the float model is run beside the other.
    pub(crate) fn could_compare_streams(&self, role: Role) -> bool {
        let norm = match role {
            Role::AttentionOut(layer) => Role::AttentionOutNorm(layer),
            Role::Down(layer) => Role::DownNorm(layer),
            _ => return false,
        };
        let has_norm = joined_params(self.config).iter().any(|param| param.role == norm);
        self.settings.matrix.stream_alpha != 0.0 && !has_norm
    }

    /// The inputs that are kept, all on the device.
    pub(crate) fn kept_pairs(&self) -> Vec<Pair<O::Tensor>> {
        let on_device = |held: &Held<Rc<O::Tensor>>| match held {
            Held::Device(input) => Rc::clone(input),
            Held::Host(_) => panic!("there was room for all of them"),
        };
        let [x, float] = &self.streams[..] else { panic!("both models are run") };
        x.kept.iter().zip(&float.kept).map(|(x, float)| [on_device(x), on_device(float)]).collect()
    }

    /// Runs a part of the layer over every window. `matrices` are those that it multiplies with. Its effect on the
    /// residual streams stays, unless a layer's matrices are solved at once. To `sums` the inputs of its end are added, without
    /// their drift where that comes late.
    pub(crate) async fn run(
        &mut self,
        matrices: Vec<LayerMatrix>,
        pass: Pass,
        kept: Kept,
        mut sums: Option<(&mut O::Sums, bool)>,
    ) -> Result<()> {
        let begun = Instant::now();
        let layers = self.upload_layers(matrices)?;
        let hidden_size = self.config.hidden_size;
        let is_trial = !self.settings.true_sequential && pass.stop.is_some();
        let is_changed = !is_trial && (pass.start.is_some() || pass.stop.is_none());
        let compares_streams = sums.is_some() && pass.stop.is_some_and(|role| self.compares_streams(role));
        let step = if self.is_on_way_to_head { Step::ToHead } else { Step::of(pass, self.layer, sums.is_some()) };
        let mut forward_share = 1.0;
        for batch in 0..self.streams[0].hidden.len() {
            let first = batch * self.kv.len();
            let windows = self.kv.len().min(self.windows.len() - first);
            let rows = windows * self.seq_len;
            let mut observed = Vec::with_capacity(layers.len());
            let mut hidden = Vec::with_capacity(layers.len());
            for (stream, layer) in self.streams.iter_mut().zip(&layers) {
                let held = std::mem::replace(&mut stream.hidden[batch], Held::Host(Vec::new()));
                let (mut x, on_host) = match held {
                    Held::Device(x) => (x, None),
                    Held::Host(values) => (self.ops.upload(rows, hidden_size, &values)?, Some(values)),
                };
                let before = (is_trial && on_host.is_none()).then(|| {
                    let copy = self.ops.select_rows(&x, &(0..rows).collect::<Vec<_>>());
                    std::mem::replace(&mut x, copy)
                });
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
                hidden.push((x, before, on_host));
            }
            // A device works behind the host's back; the first batch tells how its time is divided.
            if batch == 0 && sums.is_some() {
                self.ops.inner().read(&self.mark).await?;
            }
            let forward = begun.elapsed();
            if let Some((sums, is_late)) = &mut sums {
                let [x, float @ ..] = &observed[..] else { panic!("a pass that adds to sums has an end") };
                let float = float.first().filter(|_| !*is_late);
                self.ops.inner().add(sums, x, float.map(|x| &**x)).await?;
                if compares_streams {
                    let [stream, float] = [&hidden[0].0, &hidden[1].0].map(Activation::value);
                    self.ops.inner().add_streams(sums, x, [stream, float]).await?;
                }
                if batch == 0 {
                    self.ops.inner().read(&self.mark).await?;
                    forward_share = forward.as_secs_f64() / begun.elapsed().as_secs_f64();
                }
            }
            for (stream, (x, before, on_host)) in self.streams.iter_mut().zip(hidden) {
                stream.hidden[batch] = match on_host {
                    None => Held::Device(before.unwrap_or(x)),
                    Some(_) if is_changed => Held::Host(self.ops.read(&x).await?),
                    Some(values) => Held::Host(values),
                };
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
            // So that no more than this is under way.
            self.ops.inner().read(&self.mark).await?;
            self.work.advance(step, rows as f64 / self.tokens() as f64);
            self.tell(pass)?;
        }
        if kept == Kept::Beginning {
            self.streams.iter_mut().for_each(|stream| stream.kept.clear());
        }
        let forward = begun.elapsed().mul_f64(forward_share);
        self.timings.forward += forward;
        self.timings.hessian += begun.elapsed() - forward;
        self.step_done(step);
        Ok(())
    }

    /// The layer with these matrices, in each of the models; the others are absent.
    fn upload_layers(&mut self, matrices: Vec<LayerMatrix>) -> Result<Vec<Layer<ObserveOps<O>>>> {
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

    /// The layer with these matrices; the others are absent.
    pub(crate) fn upload_layer(&mut self, matrices: Vec<(Role, Weight)>) -> Result<Layer<ObserveOps<O>>> {
        let mut parts = Parts::default();
        for (role, weight) in &self.vectors {
            parts.add(&mut self.ops, *role, weight.clone())?;
        }
        for role in matrix_roles(self.layer) {
            parts.add_matrix(role, PlacedMatrix::absent(role));
        }
        for (role, weight) in matrices {
            let weight = self.as_multiplied(weight);
            parts.add(&mut self.ops, role, weight)?;
        }
        Ok(Layer::new(self.config, &mut parts, self.layer))
    }

    /// A matrix in the numbers that the device multiplies fastest, if they can hold it.
    fn as_multiplied(&mut self, weight: Weight) -> Weight {
        /// Values that a thread converts at a time.
        const CHUNK: usize = 1 << 16;
        match weight {
            Weight::F32 { shape, data } if self.ops.inner().multiplies_f16() => {
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
}

/// Inputs of a matrix of a layer.
pub(crate) fn input_cols(config: &DecoderConfig, role: Role) -> usize {
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
