//! [`Calibrate`]: the operations of a device that the quantizer needs in addition to [`Ops`].

use std::rc::Rc;

use infer_core::{Result, ops::Ops};
use ndarray::ArrayView2;
use webgpu_kernels::gram::TokenWeights;

use crate::solve::{hessian::Hessian, options::Options, quantized::Solved};

/// Inputs of a matrix in the model quantized so far, and in the float model.
pub type InputPair<T> = [Rc<T>; 2];

/// Properties of a device that the walk plans with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DeviceFacts {
    /// True if activations are in host memory and the host computes them.
    pub is_host: bool,
    /// True if products with f16 weights are much faster than with f32 weights.
    pub multiplies_f16: bool,
    /// The largest batch in tokens.
    pub most_tokens: usize,
    /// The largest tensor in values.
    pub most_values: usize,
    /// Device memory in bytes, if the driver reports it.
    pub memory: Option<u64>,
}

/// The sums to collect for a matrix.
#[derive(Debug, Clone, Copy)]
pub struct SumShape {
    /// Inputs of the matrix.
    pub cols: usize,
    /// The weight of each token.
    pub weights: TokenWeights,
    /// Sum [`Hessian::drift`].
    pub with_drift: bool,
    /// Sum [`Hessian::stream_drift`] for this many outputs.
    pub stream_rows: Option<usize>,
}

/// Operations that also sum Hessians and solve matrices.
#[expect(async_fn_in_trait, reason = "as in Ops, no Send bound is wanted")]
pub trait Calibrate: Ops {
    /// Sums over tokens, on the device.
    type Sums;
    /// The part of a Hessian that stays on the device.
    type DeviceHessian;

    /// Properties of the device.
    fn facts(&self) -> DeviceFacts;

    /// The same operations with weights and activations in eight bits, if that is much faster.
    fn eight_bit(&self) -> Option<Self>
    where
        Self: Sized,
    {
        None
    }

    /// Zero sums.
    fn new_sums(&mut self, shape: SumShape) -> Result<Self::Sums>;
    /// Adds inputs `x` `[tokens, cols]`, whole windows. `float`: the float model's inputs, for the drift. `streams`: the residual
    /// streams `[tokens, stream_rows]` of the quantized and of the float model.
    async fn add(
        &mut self,
        sums: &mut Self::Sums,
        x: &Self::Tensor,
        float: Option<&Self::Tensor>,
        streams: Option<[&Self::Tensor; 2]>,
    ) -> Result<()>;
    /// The Hessian of all inputs. The drift of the pairs `late`, whose inputs were added without their float ones, is summed now: a
    /// GPU does this while the host factors the Hessian.
    async fn finish(
        &mut self,
        sums: Self::Sums,
        late: &[InputPair<Self::Tensor>],
    ) -> Result<(Hessian, Self::DeviceHessian)>;
    /// Copies a Hessian from elsewhere to the device.
    fn place(&mut self, hessian: &Hessian) -> Result<Self::DeviceHessian>;

    /// Quantizes `weights` `[rows, cols]`, on the faster of device and host.
    async fn solve(
        &mut self,
        weights: ArrayView2<'_, f32>,
        hessian: &Hessian,
        on_device: &Self::DeviceHessian,
        options: &Options,
    ) -> crate::Result<Solved>;
}
