//! One matrix of a layer: the pass that sums its Hessian, then its solution.

use std::{sync::Arc, time::Instant};

use half::f16;
use model_format::{Param, Weight};
use ndarray::ArrayView2;

use super::{
    activations::{InputCache, LayerMatrix},
    layer::input_cols,
    observe::Pass,
    pass::Summing,
    pending::PendingMatrix,
    state::Walk,
};
use crate::{
    calibrate::{Calibrate, SumShape},
    error::{Error, Result},
    input::source::read_values,
    report::matrix::Sample,
    solve::{
        hessian::Hessian,
        quantized::{Quantized, Solved},
    },
    store::Store,
};

impl<O: Calibrate> Walk<'_, O> {
    /// The matrix `param` of the quantized model, for later passes. Runs the part of the layer that ends at it, with `matrices`, and
    /// solves it, unless the store has it or it stays as it is.
    pub(super) async fn quantize_matrix(
        &mut self,
        store: &mut dyn Store,
        param: &Param,
        matrices: Vec<LayerMatrix>,
        pass: Pass,
        cache: InputCache,
    ) -> Result<LayerMatrix> {
        let known = store.values(param)?;
        let is_solved = known.is_none() && self.settings.options(param)?.is_some();
        let mut float = None;
        let data = if is_solved {
            let hessian = self.observe(matrices, pass, cache).await?;
            let (quantized, values) = self.solve(store, param, hessian).await?;
            float = Some(values).filter(|_| self.streams.len() > 1);
            quantized.dequantize().into_raw_vec_and_offset().0
        } else {
            if cache != InputCache::Unused {
                self.run(matrices, pass, cache, None).await?;
            }
            match known {
                Some(values) => values,
                // Checkpoints store it in f16.
                None => self.read(param.role)?.into_iter().map(|v| f16::from_f32(v).to_f32()).collect(),
            }
        };
        Ok(LayerMatrix { role: param.role, weight: Weight::F32 { shape: param.shape.clone(), data }, float })
    }

    /// Runs the part of the layer that ends at a matrix and returns the Hessian of the matrix.
    async fn observe(
        &mut self,
        matrices: Vec<LayerMatrix>,
        pass: Pass,
        cache: InputCache,
    ) -> Result<(Hessian, O::DeviceHessian)> {
        let role = pass.stop.expect("a pass that observes has an end");
        let with_drift = self.streams.len() > 1;
        let shape = SumShape {
            cols: input_cols(self.config, role),
            weights: self.token_weights(),
            with_drift,
            stream_rows: self.sums_stream_drift(role).then_some(self.config.hidden_size),
        };
        let mut sums = self.ops.inner().new_sums(shape)?;
        // The drift is half of the products. A device sums it from cached inputs while the host factors the Hessian.
        let can_sum_later = !self.device.is_host && with_drift && self.can_cache_inputs(role);
        let drift_later = cache == InputCache::Fill && can_sum_later;
        self.run(matrices, pass, cache, Some(Summing { sums: &mut sums, drift_later })).await?;
        let late = if drift_later { self.cached_pairs() } else { Vec::new() };
        let begun = Instant::now();
        let hessian = self.ops.inner().finish(sums, &late).await?;
        self.timings.hessian += begun.elapsed();
        Ok(hessian)
    }

    /// Quantizes a matrix, and hands it to a thread that reports and stores it. A Hessian without tokens gives round-to-nearest.
    /// Returns the float values too.
    pub(super) async fn solve(
        &mut self,
        store: &mut dyn Store,
        param: &Param,
        (hessian, on_device): (Hessian, O::DeviceHessian),
    ) -> Result<(Arc<Quantized>, Vec<f32>)> {
        // A killed process loses one matrix at most, and the solver gets all threads of the host.
        self.store_pending(store)?;
        let options = self.settings.options(param)?.expect("a matrix that is to be quantized");
        let begun = Instant::now();
        let (rows, cols) = (param.shape[0], param.shape[1]);
        let values = read_values(self.checkpoint, param)?;
        let weights = ArrayView2::from_shape((rows, cols), &values).expect("read_param checked the shape");
        if (0..cols).any(|i| !hessian.products[(i, i)].is_finite()) {
            let module = param.name.strip_suffix(".weight").unwrap_or(&param.name).to_owned();
            return Err(Error::NonFiniteActivations { module });
        }
        let solved = self.ops.inner().solve(weights, &hessian, &on_device, &options).await?;
        let Solved { quantized, factoring } = solved;
        let (elapsed, quantized, sample) = (begun.elapsed(), Arc::new(quantized), Sample::of(weights));
        let writing = store.prepare(param, &quantized)?;
        let codes = Arc::clone(&quantized);
        self.pending = Some(PendingMatrix::spawn(param, codes, sample, hessian.products, options, elapsed, writing));
        self.timings.factoring += factoring;
        self.timings.quantization += elapsed - factoring;
        self.advance(1.0);
        Ok((quantized, values))
    }
}
