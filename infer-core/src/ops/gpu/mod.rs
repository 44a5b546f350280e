//! [`GpuOps`]: records the operations as kernels of `webgpu-kernels`.
//!
//! Nothing waits until [`Backend::read`] or [`Choose::tokens`](super::Choose::tokens). Outputs are temporaries of the device's
//! pool: a decode step records the same operations as the one before, and gets the same buffers. If an allocation fails between
//! two reads, the next read returns the error.

mod chain;
mod choose;
mod forward;
mod load;
mod losses;
mod reads;

use webgpu_kernels::{
    Factor, Gpu, KvDtype, KvPool, Rows, WeightFormat,
    argmax::Argmax,
    gemv_chain::Links,
    gpu::{Buffer, Recorder},
};

use super::Backend;
use crate::Result;
use reads::Chains;

pub use choose::GpuTokens;
pub use webgpu_kernels::{Matrix, gemv_chain::ChainChoice};

/// Lookahead in tokens: while one token is read and the next is recorded, the device works on a third.
const AHEAD: usize = 2;

/// The operations on a GPU.
pub struct GpuOps {
    gpu: Gpu,
    recorder: Recorder,
    kv_dtype: KvDtype,
    ahead: usize,
    /// Format and columns of each kind of matrix that was loaded.
    kinds: Vec<(WeightFormat, usize)>,
    /// Buffers of the current chain.
    links: Option<Links>,
    /// Overrides the device's choice of chain.
    chain: Option<ChainChoice>,
    /// Overrides the poll limit of a waiting workgroup.
    most_polls: Option<u32>,
    chains: Chains,
}

/// Activations `[rows, cols]` on the device.
pub struct GpuTensor {
    /// Rows, one per token.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    values: Buffer<f32>,
    /// A factor still to be applied: [`Forward::linear_add_rms_norm`](super::Forward::linear_add_rms_norm) leaves the division by
    /// the root mean square to the operation that reads the values.
    factor: Option<Factor>,
}

impl GpuTensor {
    /// The values `[rows, cols]`. Panics if a factor is still to be applied.
    pub fn values(&self) -> &Buffer<f32> {
        assert!(self.factor.is_none(), "the result of linear_add_rms_norm may only go to linear, linear_glu or read");
        &self.values
    }
}

impl GpuOps {
    /// Operations on `gpu`, with keys and values in `kv_dtype`.
    pub fn new(gpu: Gpu, kv_dtype: KvDtype) -> GpuOps {
        // A software device shares the host's cores, so a dropped lookahead costs time.
        let ahead = if gpu.caps().is_software { 0 } else { AHEAD };
        GpuOps {
            recorder: Recorder::new(&gpu),
            gpu,
            kv_dtype,
            ahead,
            kinds: Vec::new(),
            links: None,
            chain: None,
            most_polls: None,
            chains: Chains::default(),
        }
    }

    /// Operations that are recorded but not run, and need no memory. Used to plan.
    pub(crate) fn planning(gpu: Gpu, kv_dtype: KvDtype) -> GpuOps {
        GpuOps { recorder: Recorder::planning(&gpu), ..GpuOps::new(gpu, kv_dtype) }
    }

    /// A matrix without content, for planning.
    pub(crate) fn plan_matrix(&mut self, format: WeightFormat, rows: usize, cols: usize) -> Matrix {
        let matrix = Matrix::hollow(&self.recorder, format, rows, cols);
        self.loaded(matrix)
    }

    /// Records [`Choose::choose`](super::Choose::choose) for planning.
    pub(crate) fn plan_choice(&mut self, logits: &GpuTensor) {
        let id = self.recorder.temporary(1);
        Argmax { rows: 1, cols: logits.cols }.record(&mut self.recorder, logits.values(), &id);
    }

    /// The same operations with another lookahead.
    pub fn with_ahead(self, ahead: usize) -> GpuOps {
        GpuOps { ahead, ..self }
    }

    /// The same operations with this chain, if the device supports it, instead of the device's own choice.
    pub fn with_chain(self, chain: ChainChoice) -> GpuOps {
        GpuOps { chain: Some(chain), ..self }
    }

    /// The same operations with another poll limit for workgroups of a chain, to test expired waits. With 0, every wait expires.
    pub fn with_most_polls(self, most_polls: u32) -> GpuOps {
        GpuOps { most_polls: Some(most_polls), ..self }
    }

    /// True if a chain was recorded.
    pub fn has_chained(&self) -> bool {
        self.links.is_some()
    }

    /// The device.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Records dispatches of other kernels on the same device, in order with these operations.
    pub fn recorder(&mut self) -> &mut Recorder {
        &mut self.recorder
    }

    /// Records the kind of a loaded matrix.
    fn loaded(&mut self, matrix: Matrix) -> Matrix {
        let kind = (matrix.format, matrix.cols);
        if !self.kinds.contains(&kind) {
            self.kinds.push(kind);
        }
        matrix
    }

    /// Format and columns of each kind of matrix that was loaded.
    pub fn kinds(&self) -> &[(WeightFormat, usize)] {
        &self.kinds
    }

    /// Number type of KV caches.
    pub fn kv_dtype(&self) -> KvDtype {
        self.kv_dtype
    }

    fn temporary(&mut self, rows: usize, cols: usize) -> GpuTensor {
        GpuTensor { rows, cols, values: self.recorder.temporary(rows * cols), factor: None }
    }
}

impl Backend for GpuOps {
    type Tensor = GpuTensor;
    type Matrix = Matrix;
    type Kv = KvPool;
    type Rows = Rows;

    async fn read(&mut self, x: &GpuTensor) -> Result<Vec<f32>> {
        let mut values = self.read_now(&x.values).await?;
        if let Some(factor) = &x.factor {
            let factor = factor.of(&self.read_now(&factor.squares).await?, x.cols);
            values.iter_mut().for_each(|v| *v *= factor);
        }
        Ok(values)
    }
}
