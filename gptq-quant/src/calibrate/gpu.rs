//! [`Calibrate`] on a GPU: sums by kernels; matrices by `gpu_solver.rs` where it can, by the host otherwise.

use faer::Mat;
use infer_core::{
    Result,
    ops::gpu::{GpuOps, GpuTensor},
};
use model_format::Weight;
use ndarray::ArrayView2;
use webgpu_kernels::{
    Matrix,
    gemm::Cooperative,
    gram::{Gram, GramSums, TokenWeights},
};

use super::{
    gpu_solver::{self, GpuHessian},
    operations::{Calibrate, DeviceFacts, InputPair, SumShape},
};
use crate::solve::{cholesky::square, dialect::Dialect, gptq, hessian::Hessian, options::Options, quantized::Solved};

/// Sums of a [`Hessian`] on a GPU.
pub struct GpuSums {
    weights: TokenWeights,
    tokens: usize,
    products: GramSums,
    drift: Option<GramSums>,
    streams: Option<GramSums>,
}

impl Calibrate for GpuOps {
    type Sums = GpuSums;
    type DeviceHessian = GpuHessian;

    fn facts(&self) -> DeviceFacts {
        let (gpu, caps) = (self.gpu(), self.gpu().caps());
        DeviceFacts {
            is_host: false,
            multiplies_f16: Cooperative::supports_device(caps),
            most_tokens: 8192,
            most_values: caps.max_binding.min(caps.max_buffer) as usize / size_of::<f32>(),
            memory: gpu.summary().memory,
        }
    }

    fn new_sums(&mut self, shape: SumShape) -> Result<GpuSums> {
        let SumShape { cols, weights, with_drift, stream_rows } = shape;
        let mut zero = |rows: usize| self.recorder().with_room(|gpu| GramSums::new(gpu, rows, cols));
        let products = zero(cols)?;
        let drift = if with_drift { Some(zero(cols)?) } else { None };
        Ok(GpuSums { weights, tokens: 0, products, drift, streams: stream_rows.map(&mut zero).transpose()? })
    }

    async fn add(
        &mut self,
        sums: &mut GpuSums,
        x: &GpuTensor,
        float: Option<&GpuTensor>,
        streams: Option<[&GpuTensor; 2]>,
    ) -> Result<()> {
        sums.tokens += x.rows;
        add_products(self, sums.weights, x, &sums.products, None);
        if let Some(float) = float {
            let drift = sums.drift.as_ref().expect("sums with drift");
            add_products(self, sums.weights, x, drift, Some([float, x]));
        }
        if let Some([stream, float]) = streams {
            let streams = sums.streams.as_ref().expect("sums with streams");
            add_products(self, sums.weights, x, streams, Some([float, stream]));
        }
        Ok(())
    }

    /// Reads the products; both drifts stay on the device.
    async fn finish(&mut self, sums: GpuSums, late: &[InputPair<GpuTensor>]) -> Result<(Hessian, GpuHessian)> {
        let scale = 2.0 / sums.tokens.max(1) as f32;
        let products = sums.products.join(self.recorder(), scale, true)?;
        let values = products.read(self.recorder()).await?;
        let cols = products.cols;
        // Symmetric, so rows are columns.
        let on_host = square(cols, |i, j| f64::from(values[j * cols + i]));
        drop(values);
        for [x, float] in late {
            let drift = sums.drift.as_ref().expect("sums with drift");
            add_products(self, sums.weights, x, drift, Some([float, x]));
        }
        let mut join = |sums: GramSums| sums.join(self.recorder(), scale, false);
        let drift = sums.drift.map(&mut join).transpose()?;
        let stream_drift = sums.streams.map(&mut join).transpose()?;
        let hessian = Hessian { products: on_host, drift: None, stream_drift: None };
        Ok((hessian, GpuHessian { products, drift, stream_drift }))
    }

    fn place(&mut self, hessian: &Hessian) -> Result<GpuHessian> {
        let mut upload = |matrix: &Mat<f64>| {
            let (rows, cols) = (matrix.nrows(), matrix.ncols());
            let data = (0..rows).flat_map(|i| (0..cols).map(move |j| matrix[(i, j)] as f32)).collect();
            let weight = Weight::F32 { shape: vec![rows, cols], data };
            self.recorder().with_room(|gpu| Matrix::upload(gpu, &weight))
        };
        let products = upload(&hessian.products)?;
        let drift = hessian.drift.as_ref().map(&mut upload).transpose()?;
        let stream_drift = hessian.stream_drift.as_ref().map(upload).transpose()?;
        Ok(GpuHessian { products, drift, stream_drift })
    }

    async fn solve(
        &mut self,
        weights: ArrayView2<'_, f32>,
        hessian: &Hessian,
        on_device: &GpuHessian,
        options: &Options,
    ) -> crate::Result<Solved> {
        if gpu_solver::can_solve(weights.ncols(), options) {
            let piece_bytes = gpu_solver::PIECE_BYTES;
            return gpu_solver::solve(self, weights, &hessian.products, on_device, options, piece_bytes).await;
        }
        let drifts = [on_device.drift(self).await?, on_device.stream_drift(self).await?];
        let drifts = drifts.each_ref().map(Option::as_ref);
        Ok(gptq::solve(weights, &hessian.products, drifts, options, Dialect::Own))
    }
}

/// Adds products of inputs `x` `[tokens, cols]`, whole windows: `sums += X^T W X`, or with `drift` `[F, B]`, both `[tokens, rows]`,
/// `sums += (F - B)^T W X`. Submits them to the device.
fn add_products(
    ops: &mut GpuOps,
    weights: TokenWeights,
    x: &GpuTensor,
    sums: &GramSums,
    drift: Option<[&GpuTensor; 2]>,
) {
    let (tokens, recorder) = (x.rows, ops.recorder());
    let weight = recorder.temporary(tokens);
    weights.record(recorder, tokens, x.values(), &weight);
    let drift = drift.map(|pair| {
        let fits = pair.iter().all(|side| (side.rows, side.cols) == (tokens, sums.rows));
        assert!(fits && x.cols == sums.cols, "add_products: shapes");
        pair.map(GpuTensor::values)
    });
    Gram { tokens }.record(recorder, x.values(), drift, &weight, sums);
    recorder.submit();
}
