//! [`Calibrate`]: operations whose device can also add up the Hessians, so that activations stay where they are.
//!
//! On a GPU the sums are kernels; next to the CPU's operations they are `hessian.rs`'s.

use std::{rc::Rc, time::Duration};

use infer_core::{
    Result,
    ops::{
        Backend, Loading, Ops, TokenWeights,
        candle::CandleOps,
        gpu::{GpuOps, GramSums, Matrix},
    },
};

use faer::Mat;
use model_format::{Role, Weight};
use ndarray::ArrayView2;

use crate::{
    Quantized,
    cholesky::{filled, square},
    gptq::{Options, quantize_timed},
    hessian::{Hessian, HostSums},
    on_device,
};

/// Inputs of a matrix in the model quantized so far, and in the float one.
pub type Pair<T> = [Rc<T>; 2];

/// Operations that add up products of what goes into a matrix.
#[expect(async_fn_in_trait, reason = "as in Ops, no Send bound is wanted")]
pub trait Calibrate: Ops {
    /// Sums over tokens, where the activations are.
    type Sums;
    /// What a matrix is solved with, as far as it is where the activations are.
    type Resident;

    /// Whether what is on the device is in the host's memory.
    const ON_HOST: bool;

    /// The same with weights and activations in eight bits, where that is much faster.
    fn rounded(&self) -> Option<Self>
    where
        Self: Sized,
    {
        None
    }

    /// Whether products with weights in f16 are much faster.
    fn multiplies_f16(&self) -> bool {
        false
    }

    /// Whether it works on what it was given while the host does something else.
    fn works_beside_host(&self) -> bool {
        false
    }

    /// Tokens to run at a time, if windows are shorter, in activations of at most `cols`.
    fn batch_tokens(&self, cols: usize) -> usize;

    /// Bytes of memory that the device has, where it is known.
    fn device_memory(&self) -> Option<u64> {
        None
    }

    /// No token seen yet. `with_drift`: the float model's inputs will come too.
    fn new_sums(&mut self, cols: usize, weights: TokenWeights, with_drift: bool) -> Result<Self::Sums>;
    /// Adds inputs `[tokens, cols]` of whole windows, with those of the float model if there is one.
    async fn add(&mut self, sums: &mut Self::Sums, x: &Self::Tensor, float: Option<&Self::Tensor>) -> Result<()>;
    /// Lets the sums tell also how what `rows` outputs are added to has drifted.
    fn expect_streams(&mut self, sums: &mut Self::Sums, rows: usize) -> Result<()>;
    /// Adds inputs with what the outputs will be added to, in the model quantized so far and in the float one.
    async fn add_streams(&mut self, sums: &mut Self::Sums, x: &Self::Tensor, streams: [&Self::Tensor; 2])
    -> Result<()>;
    /// What they come to. Of `late` pairs of inputs and the float model's, those of the first were added alone: how the
    /// others differ from them is added up now, by a device while the host goes on.
    async fn finish(&mut self, sums: Self::Sums, late: &[Pair<Self::Tensor>]) -> Result<(Hessian, Self::Resident)>;
    /// The same of a Hessian that comes from elsewhere.
    fn place(&mut self, hessian: &Hessian) -> Result<Self::Resident>;

    /// Quantizes a matrix, where that is fastest. To `factoring` goes the time until the factor is there.
    async fn solve(
        &mut self,
        weights: ArrayView2<'_, f32>,
        hessian: &Hessian,
        resident: &Self::Resident,
        options: &Options,
        factoring: &mut Duration,
    ) -> crate::Result<Quantized>;
}

impl Calibrate for CandleOps {
    type Sums = HostSums;
    type Resident = ();

    const ON_HOST: bool = true;

    fn rounded(&self) -> Option<CandleOps> {
        Some(CandleOps::rounded())
    }

    fn batch_tokens(&self, _cols: usize) -> usize {
        2048
    }

    fn new_sums(&mut self, cols: usize, weights: TokenWeights, with_drift: bool) -> Result<HostSums> {
        Ok(HostSums::new(cols, weights, with_drift))
    }

    async fn add(&mut self, sums: &mut HostSums, x: &Self::Tensor, float: Option<&Self::Tensor>) -> Result<()> {
        let x = self.read(x).await?;
        match float {
            None => sums.add(&x, None),
            Some(float) => sums.add(&x, Some(&self.read(float).await?)),
        }
        Ok(())
    }

    fn expect_streams(&mut self, sums: &mut HostSums, rows: usize) -> Result<()> {
        sums.expect_streams(rows);
        Ok(())
    }

    async fn add_streams(
        &mut self,
        sums: &mut HostSums,
        x: &Self::Tensor,
        [stream, float]: [&Self::Tensor; 2],
    ) -> Result<()> {
        let (x, stream, float) = (self.read(x).await?, self.read(stream).await?, self.read(float).await?);
        sums.add_streams(&x, [&stream, &float]);
        Ok(())
    }

    async fn finish(&mut self, sums: HostSums, late: &[Pair<Self::Tensor>]) -> Result<(Hessian, ())> {
        assert!(late.is_empty(), "finish: the host does one thing at a time");
        Ok((sums.finish(), ()))
    }

    fn place(&mut self, _hessian: &Hessian) -> Result<()> {
        Ok(())
    }

    async fn solve(
        &mut self,
        weights: ArrayView2<'_, f32>,
        hessian: &Hessian,
        _resident: &(),
        options: &Options,
        factoring: &mut Duration,
    ) -> crate::Result<Quantized> {
        Ok(quantize_timed(
            weights,
            &hessian.products,
            [hessian.drift.as_ref(), hessian.stream_drift.as_ref()],
            options,
            factoring,
        ))
    }
}

/// Sums on a GPU.
pub struct GpuSums {
    weights: TokenWeights,
    tokens: usize,
    products: GramSums,
    drift: Option<GramSums>,
    streams: Option<GramSums>,
}

/// A [`Hessian`] on a GPU, in f32.
pub struct GpuHessian {
    pub(crate) products: Matrix,
    pub(crate) drift: Option<Matrix>,
    pub(crate) stream_drift: Option<Matrix>,
}

impl Calibrate for GpuOps {
    type Sums = GpuSums;
    type Resident = GpuHessian;

    const ON_HOST: bool = false;

    fn multiplies_f16(&self) -> bool {
        self.has_matrix_units()
    }

    fn works_beside_host(&self) -> bool {
        !self.gpu().caps().is_software
    }

    fn batch_tokens(&self, cols: usize) -> usize {
        (self.most_values() / cols).min(8192)
    }

    fn device_memory(&self) -> Option<u64> {
        self.gpu().summary().memory
    }

    fn new_sums(&mut self, cols: usize, weights: TokenWeights, with_drift: bool) -> Result<GpuSums> {
        let products = self.new_gram(cols, cols)?;
        let drift = if with_drift { Some(self.new_gram(cols, cols)?) } else { None };
        Ok(GpuSums { weights, tokens: 0, products, drift, streams: None })
    }

    async fn add(&mut self, sums: &mut GpuSums, x: &Self::Tensor, float: Option<&Self::Tensor>) -> Result<()> {
        sums.tokens += x.rows;
        self.add_gram(sums.weights, x, &sums.products, None);
        if let Some(float) = float {
            self.add_gram(sums.weights, x, sums.drift.as_ref().expect("sums with drift"), Some([float, x]));
        }
        Ok(())
    }

    fn expect_streams(&mut self, sums: &mut GpuSums, rows: usize) -> Result<()> {
        sums.streams = Some(self.new_gram(rows, sums.products.cols)?);
        Ok(())
    }

    async fn add_streams(
        &mut self,
        sums: &mut GpuSums,
        x: &Self::Tensor,
        [stream, float]: [&Self::Tensor; 2],
    ) -> Result<()> {
        self.add_gram(sums.weights, x, sums.streams.as_ref().expect("streams are expected"), Some([float, stream]));
        Ok(())
    }

    /// The drift stays where it is.
    async fn finish(&mut self, sums: GpuSums, late: &[Pair<Self::Tensor>]) -> Result<(Hessian, GpuHessian)> {
        let scale = 2.0 / sums.tokens.max(1) as f32;
        let products = self.join_gram(&sums.products, scale, true)?;
        let values = self.read_matrix(&products).await?;
        let cols = products.cols;
        // Symmetric, so that rows are columns.
        let of_host = square(cols, |i, j| f64::from(values[j * cols + i]));
        drop(values);
        for [x, float] in late {
            self.add_gram(sums.weights, x, sums.drift.as_ref().expect("sums with drift"), Some([float, x]));
        }
        let drift = sums.drift.map(|drift| self.join_gram(&drift, scale, false)).transpose()?;
        let stream_drift = sums.streams.map(|streams| self.join_gram(&streams, scale, false)).transpose()?;
        let hessian = Hessian { products: of_host, drift: None, stream_drift: None };
        Ok((hessian, GpuHessian { products, drift, stream_drift }))
    }

    fn place(&mut self, hessian: &Hessian) -> Result<GpuHessian> {
        let mut upload = |matrix: &Mat<f64>| {
            let (rows, cols) = (matrix.nrows(), matrix.ncols());
            let data = (0..rows).flat_map(|i| (0..cols).map(move |j| matrix[(i, j)] as f32)).collect();
            self.upload_matrix(Role::Down(0), Weight::F32 { shape: vec![rows, cols], data })
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
        resident: &GpuHessian,
        options: &Options,
        factoring: &mut Duration,
    ) -> crate::Result<Quantized> {
        if on_device::suits(weights.ncols(), options) {
            let products = &hessian.products;
            let piece = on_device::PIECE_BYTES;
            return on_device::solve(self, weights, products, resident, options, factoring, piece).await;
        }
        let drifts = [resident.drift(self).await?, resident.stream_drift(self).await?];
        let drifts = drifts.each_ref().map(Option::as_ref);
        Ok(quantize_timed(weights, &hessian.products, drifts, options, factoring))
    }
}

impl GpuHessian {
    /// [`Hessian::drift`].
    pub async fn drift(&self, ops: &mut GpuOps) -> Result<Option<Mat<f64>>> {
        to_host(ops, self.drift.as_ref()).await
    }

    /// [`Hessian::stream_drift`].
    pub async fn stream_drift(&self, ops: &mut GpuOps) -> Result<Option<Mat<f64>>> {
        to_host(ops, self.stream_drift.as_ref()).await
    }
}

/// A matrix that a GPU holds, if there is one.
async fn to_host(ops: &mut GpuOps, matrix: Option<&Matrix>) -> Result<Option<Mat<f64>>> {
    let Some(matrix) = matrix else { return Ok(None) };
    let (values, cols) = (ops.read_matrix(matrix).await?, matrix.cols);
    Ok(Some(filled(matrix.rows, cols, |i, j| f64::from(values[i * cols + j]))))
}
