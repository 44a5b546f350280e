//! [`Calibrate`]: operations whose device can also add up the Hessians, so that activations stay where they are.
//!
//! On a GPU the sums are kernels; next to the CPU's operations they are `hessian.rs`'s.

use std::time::Duration;

use infer_core::{
    Result,
    ops::{
        Ops, TokenWeights,
        candle::CandleOps,
        gpu::{GpuOps, GramSums},
    },
};

use ndarray::ArrayView2;

use crate::{
    Quantized,
    gptq::{Options, quantize_timed},
    hessian::{Hessian, HostSums},
    on_device,
};

/// Operations that add up products of what goes into a matrix.
#[expect(async_fn_in_trait, reason = "as in Ops, no Send bound is wanted")]
pub trait Calibrate: Ops {
    /// Sums over tokens, where the activations are.
    type Sums;

    /// Tokens to run at a time, if windows are shorter.
    const BATCH_TOKENS: usize;

    /// Whether what is on the device is in the host's memory.
    const ON_HOST: bool;

    /// No token seen yet. `with_drift`: the float model's inputs will come too.
    fn new_sums(&mut self, cols: usize, weights: TokenWeights, with_drift: bool) -> Result<Self::Sums>;
    /// Adds inputs `[tokens, cols]` of whole windows, with those of the float model if there is one.
    async fn add(&mut self, sums: &mut Self::Sums, x: &Self::Tensor, float: Option<&Self::Tensor>) -> Result<()>;
    /// What they come to.
    async fn finish(&mut self, sums: Self::Sums) -> Result<Hessian>;

    /// Quantizes a matrix, where that is fastest. To `factoring` goes the time until the factors are there.
    async fn solve(
        &mut self,
        weights: ArrayView2<'_, f32>,
        hessian: &Hessian,
        options: &Options,
        factoring: &mut Duration,
    ) -> crate::Result<Quantized> {
        Ok(quantize_timed(weights, &hessian.products, hessian.drift.as_ref(), options, factoring))
    }
}

impl Calibrate for CandleOps {
    type Sums = HostSums;

    const BATCH_TOKENS: usize = 2048;
    const ON_HOST: bool = true;

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

    async fn finish(&mut self, sums: HostSums) -> Result<Hessian> {
        Ok(sums.finish())
    }
}

/// Sums on a GPU.
pub struct GpuSums {
    weights: TokenWeights,
    tokens: usize,
    products: GramSums,
    drift: Option<GramSums>,
}

impl Calibrate for GpuOps {
    type Sums = GpuSums;

    const BATCH_TOKENS: usize = 8192;
    const ON_HOST: bool = false;

    fn new_sums(&mut self, cols: usize, weights: TokenWeights, with_drift: bool) -> Result<GpuSums> {
        let products = self.new_gram(cols)?;
        let drift = if with_drift { Some(self.new_gram(cols)?) } else { None };
        Ok(GpuSums { weights, tokens: 0, products, drift })
    }

    async fn add(&mut self, sums: &mut GpuSums, x: &Self::Tensor, float: Option<&Self::Tensor>) -> Result<()> {
        sums.tokens += x.rows;
        let drift = float.map(|float| (float, sums.drift.as_ref().expect("sums with drift")));
        self.add_gram(sums.weights, x, &sums.products, drift).await
    }

    async fn finish(&mut self, sums: GpuSums) -> Result<Hessian> {
        let products = self.read_gram(&sums.products).await?;
        let drift = match &sums.drift {
            Some(drift) => Some(self.read_gram(drift).await?),
            None => None,
        };
        Ok(Hessian::from_sums(sums.products.cols, sums.tokens, &products, drift.as_deref()))
    }

    async fn solve(
        &mut self,
        weights: ArrayView2<'_, f32>,
        hessian: &Hessian,
        options: &Options,
        factoring: &mut Duration,
    ) -> crate::Result<Quantized> {
        if on_device::suits(weights.ncols(), options) {
            return on_device::solve(self, weights, hessian, options, factoring).await;
        }
        Ok(quantize_timed(weights, &hessian.products, hessian.drift.as_ref(), options, factoring))
    }
}
