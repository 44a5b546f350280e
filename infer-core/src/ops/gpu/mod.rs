//! [`GpuOps`]: records the operations as kernels of `webgpu-kernels`.
//!
//! Nothing waits until [`Backend::read`] or [`Choose::token`](super::Choose::token). Outputs are temporaries of the device's
//! pool: a decode step records the same operations as the one before, and gets the same buffers. If an allocation fails between
//! two reads, the next read returns the error.

mod chain;
mod choose;
mod forward;
mod load;
mod losses;
mod reads;

use webgpu_kernels::{
    Factor, Gpu, KvCache, KvDtype, WeightFormat,
    argmax::Argmax,
    gemm::Cooperative,
    gemv_chain::Links,
    gpu::{Buffer, Recorder},
    gram::Gram,
};

use super::{Backend, TokenWeights};
use crate::Result;
use reads::Chains;

pub use choose::GpuToken;
pub use webgpu_kernels::{
    Matrix,
    gemv_chain::ChainChoice,
    gptq::{BLOCK, Problem, Solution, Solver},
    gram::GramSums,
};

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
    /// The values. Panics if a factor is still to be applied.
    fn values(&self) -> &Buffer<f32> {
        assert!(self.factor.is_none(), "the result of linear_add_rms_norm may only go to linear, linear_glu or read");
        &self.values
    }
}

impl GpuOps {
    /// Operations on `gpu`, with KV caches of `kv_dtype`.
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

    /// The recorder of its dispatches.
    pub(crate) fn recorder(&mut self) -> &mut Recorder {
        &mut self.recorder
    }

    /// Sums `[rows, cols]` for [`GpuOps::add_gram`], all zero. Errors: out of memory.
    pub fn new_gram(&mut self, rows: usize, cols: usize) -> Result<GramSums> {
        Ok(self.recorder.with_room(|gpu| GramSums::new(gpu, rows, cols))?)
    }

    /// Adds products of the inputs of a matrix, `[tokens, cols]`, whole windows: `sums += X^T W X`; or of what the float model
    /// has, F, and what is compared with it, B, both `[tokens, rows]`: `sums += (F - B)^T W X`. Hands them to the device.
    pub fn add_gram(&mut self, weights: TokenWeights, x: &GpuTensor, sums: &GramSums, drift: Option<[&GpuTensor; 2]>) {
        let tokens = x.rows;
        let weight = self.recorder.temporary(tokens);
        weights.record(&mut self.recorder, tokens, x.values(), &weight);
        let drift = drift.map(|pair| {
            let fits = pair.iter().all(|side| (side.rows, side.cols) == (tokens, sums.rows));
            assert!(fits && x.cols == sums.cols, "add_gram: shapes");
            pair.map(GpuTensor::values)
        });
        Gram { tokens }.record(&mut self.recorder, x.values(), drift, &weight, sums);
        self.recorder.submit();
    }

    /// Whether products with weights in f16 go through the device's matrix units.
    pub fn has_matrix_units(&self) -> bool {
        Cooperative::suits_device(self.gpu.caps())
    }

    /// `scale` times the sums; with `symmetric` those of `X^T W X`. Errors: out of memory.
    pub fn join_gram(&mut self, sums: &GramSums, scale: f32, symmetric: bool) -> Result<Matrix> {
        Ok(sums.join(&mut self.recorder, scale, symmetric)?)
    }

    /// The values of a matrix in f32, row-major.
    pub async fn read_matrix(&mut self, matrix: &Matrix) -> Result<Vec<f32>> {
        Ok(matrix.read(&mut self.recorder).await?)
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

    /// Limit of the values in a tensor.
    pub fn most_values(&self) -> usize {
        self.gpu.caps().max_binding.min(self.gpu.caps().max_buffer) as usize / size_of::<f32>()
    }

    /// Number type of KV caches.
    pub fn kv_dtype(&self) -> KvDtype {
        self.kv_dtype
    }

    /// Takes a matrix's quantization problem to the device. Errors: out of memory.
    pub fn new_solver<'a>(&mut self, problem: Problem<'a>) -> Result<Solver<'a>> {
        Ok(Solver::new(&mut self.recorder, problem)?)
    }

    /// [`Solver::shifts`], of a problem with something to make good.
    pub async fn shifts(&mut self, solver: &Solver<'_>, first: usize, rows: usize) -> Result<Vec<f32>> {
        Ok(solver.shifts(&mut self.recorder, first, rows).await?)
    }

    /// Quantizes rows of `weights` `[rows, cols]` on `grid` `[rows, groups, 2]`. Waits until the device has done it.
    pub async fn solve_rows(&mut self, solver: &Solver<'_>, weights: &[f32], grid: &[f32]) -> Result<Solution> {
        Ok(solver.solve(&mut self.recorder, weights, grid).await?)
    }

    fn temporary(&mut self, rows: usize, cols: usize) -> GpuTensor {
        GpuTensor { rows, cols, values: self.recorder.temporary(rows * cols), factor: None }
    }
}

impl Backend for GpuOps {
    type Tensor = GpuTensor;
    type Matrix = Matrix;
    type Kv = KvCache;

    async fn read(&mut self, x: &GpuTensor) -> Result<Vec<f32>> {
        let mut values = self.read_now(&x.values).await?;
        if let Some(factor) = &x.factor {
            let factor = factor.of(&self.read_now(&factor.squares).await?, x.cols);
            values.iter_mut().for_each(|v| *v *= factor);
        }
        Ok(values)
    }
}
