//! A pass: runs a part of the current layer over all windows, batch by batch, in the model quantized so far and, if drift is
//! corrected, in the float model.

use std::{rc::Rc, time::Instant};

use infer_core::ops::{Backend, Forward, Loading};

use super::{
    activations::{InputCache, LayerMatrix, Stored},
    layer::input_bytes,
    observe::Pass,
    state::Walk,
};
use crate::{
    calibrate::{Calibrate, InputPair},
    error::Result,
};

/// The sums that a pass adds to.
pub(super) struct Summing<'a, S> {
    pub(super) sums: &'a mut S,
    /// True if the drift is summed after the pass, from cached inputs.
    pub(super) drift_later: bool,
}

impl<O: Calibrate> Walk<'_, O> {
    /// Runs a part of the layer over every window with these `matrices`. Updates the residual streams, unless
    /// [`Settings::true_sequential`](crate::Settings::true_sequential) is off and the pass has an end. Adds the inputs of the matrix
    /// at its end to `summing`.
    pub(super) async fn run(
        &mut self,
        matrices: Vec<LayerMatrix>,
        pass: Pass,
        cache: InputCache,
        mut summing: Option<Summing<'_, O::Sums>>,
    ) -> Result<()> {
        let begun = Instant::now();
        let layers = self.upload_layers(matrices)?;
        let hidden_size = self.config.hidden_size;
        let is_trial = !self.settings.true_sequential && pass.stop.is_some();
        let is_changed = !is_trial && (pass.start.is_some() || pass.stop.is_none());
        let with_streams = summing.is_some() && pass.stop.is_some_and(|role| self.sums_stream_drift(role));
        let mut forward_share = 1.0;
        for batch in 0..self.streams[0].hidden.len() {
            let first = batch * self.kv_windows.count();
            let windows = self.kv_windows.count().min(self.windows.len() - first);
            let rows = windows * self.seq_len;
            let mut observed = Vec::with_capacity(layers.len());
            let mut hidden = Vec::with_capacity(layers.len());
            for (model, layer) in layers.iter().enumerate() {
                let (mut x, on_host) = match self.streams[model].hidden[batch].take() {
                    Stored::Device(x) => (x, None),
                    Stored::Host(values) => (self.ops.upload(rows, hidden_size, &values)?, Some(values)),
                };
                let before = (is_trial && on_host.is_none()).then(|| {
                    let copy = self.ops.select_rows(&x, &(0..rows).collect::<Vec<_>>());
                    std::mem::replace(&mut x, copy)
                });
                let input =
                    if cache == InputCache::Take { Some(self.take_input(model, batch, pass, rows)?) } else { None };
                self.ops.begin(pass, input);
                let placed = self.ops.place_rows(&self.kv_windows.spans(windows));
                let rope = self.rope.table(self.rope.is_long(self.seq_len));
                let delta = layer.forward(&mut self.ops, &mut x, rope, &mut self.kv, &placed);
                if pass.stop.is_some() {
                    observed.push(self.ops.take_observed());
                }
                self.ops.add_assign(&mut x, &delta);
                hidden.push((x, before, on_host));
            }
            // Devices run asynchronously. The first batch measures how the time divides into forward pass and sums.
            if batch == 0 && summing.is_some() {
                self.ops.inner().read(&self.fence).await?;
            }
            let forward = begun.elapsed();
            if let Some(Summing { sums, drift_later }) = &mut summing {
                let [x, float @ ..] = &observed[..] else { panic!("a pass that adds to sums has an end") };
                let float = float.first().filter(|_| !*drift_later).map(|x| &**x);
                let streams = with_streams.then(|| [hidden[0].0.value(), hidden[1].0.value()]);
                self.ops.inner().add(sums, x, float, streams).await?;
                if batch == 0 {
                    self.ops.inner().read(&self.fence).await?;
                    forward_share = forward.as_secs_f64() / begun.elapsed().as_secs_f64();
                }
            }
            for (stream, (x, before, on_host)) in self.streams.iter_mut().zip(hidden) {
                stream.hidden[batch] = match on_host {
                    None => Stored::Device(before.unwrap_or(x)),
                    Some(_) if is_changed => Stored::Host(self.ops.read(&x).await?),
                    Some(values) => Stored::Host(values),
                };
            }
            if cache == InputCache::Fill {
                for (model, input) in observed.into_iter().enumerate() {
                    self.cache_input(model, pass, rows, input).await?;
                }
            }
            // Bounds the queued work to one batch.
            self.ops.inner().read(&self.fence).await?;
            self.advance(rows as f64 / self.tokens() as f64);
            self.report(pass)?;
        }
        if cache == InputCache::Take {
            self.streams.iter_mut().for_each(|stream| stream.inputs.clear());
        }
        let forward = begun.elapsed().mul_f64(forward_share);
        self.timings.forward += forward;
        self.timings.hessian += begun.elapsed() - forward;
        Ok(())
    }

    /// Takes a batch of the cached inputs of the matrix where a pass begins, and frees their room.
    fn take_input(&mut self, model: usize, batch: usize, pass: Pass, rows: usize) -> Result<Rc<O::Tensor>> {
        Ok(match self.streams[model].inputs[batch].take() {
            Stored::Device(input) => {
                let role = pass.start.expect("cached inputs of the first matrix");
                self.room += input_bytes(self.config, role, rows);
                input
            }
            Stored::Host(values) => Rc::new(self.ops.inner().upload(rows, values.len() / rows, &values)?),
        })
    }

    /// Caches a batch of the inputs of the matrix where a pass ends.
    async fn cache_input(&mut self, model: usize, pass: Pass, rows: usize, input: Rc<O::Tensor>) -> Result<()> {
        let bytes = input_bytes(self.config, pass.stop.expect("inputs of the last matrix"), rows);
        let stored = if bytes <= self.room {
            self.room -= bytes;
            Stored::Device(input)
        } else {
            Stored::Host(self.ops.inner().read(&input).await?)
        };
        self.streams[model].inputs.push(stored);
        Ok(())
    }

    /// The cached inputs in both models, all on the device.
    pub(super) fn cached_pairs(&self) -> Vec<InputPair<O::Tensor>> {
        let on_device = |stored: &Stored<Rc<O::Tensor>>| match stored {
            Stored::Device(input) => Rc::clone(input),
            Stored::Host(_) => panic!("the device had room for all cached inputs"),
        };
        let [x, float] = &self.streams[..] else { panic!("both models are run") };
        x.inputs.iter().zip(&float.inputs).map(|(x, float)| [on_device(x), on_device(float)]).collect()
    }
}
