//! [`GpuOps`]: the operations recorded as kernels of `webgpu-kernels`.
//!
//! Nothing waits until [`Ops::read`] or [`Choose::token`]. Outputs are temporaries of the device's pool: recording the
//! same operations again, as every decode step does, meets the same buffers. An allocation that fails between two reads
//! is reported by the next one.

use model_format::{Role, Weight};
use webgpu_kernels::{
    Factor, Gpu, KvCache, KvDtype, Matrix,
    add::Add,
    argmax::Argmax,
    attention::Attention,
    gpu::{Buffer, Readback, Recorder},
    rms_norm::{AddRmsNorm, RmsNorm},
    rope::Rope,
    select_rows::SelectRows,
    swiglu::Swiglu,
};

use super::{AttentionShape, Choose, KvShape, Ops, Rows, Span};
use crate::Result;

/// Tokens that are run before the host knows the first: while one is read and the next recorded, the device has one.
const AHEAD: usize = 2;

/// The operations on a GPU.
pub struct GpuOps {
    gpu: Gpu,
    recorder: Recorder,
    kv_dtype: KvDtype,
    ahead: usize,
}

/// Activations `[rows, cols]` on the device.
pub struct GpuTensor {
    /// Rows, one per token.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    values: Buffer<f32>,
    /// What the values are still to be multiplied by: left by [`Ops::linear_add_rms_norm`] to who reads them.
    factor: Option<Factor>,
}

impl GpuTensor {
    /// The values, of a tensor that is what it is.
    fn settled(&self) -> &Buffer<f32> {
        assert!(self.factor.is_none(), "a fused norm goes to linear, linear_swiglu or read");
        &self.values
    }
}

impl GpuOps {
    /// Operations on `gpu`, with caches that store `kv_dtype`.
    pub fn new(gpu: Gpu, kv_dtype: KvDtype) -> GpuOps {
        // A software device has no time to give away.
        let ahead = if gpu.caps().is_software { 0 } else { AHEAD };
        GpuOps { recorder: Recorder::new(&gpu), gpu, kv_dtype, ahead }
    }

    /// The same, running so many tokens ahead.
    pub fn with_ahead(self, ahead: usize) -> GpuOps {
        GpuOps { ahead, ..self }
    }

    /// The device.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    fn temporary(&mut self, rows: usize, cols: usize) -> GpuTensor {
        GpuTensor { rows, cols, values: self.recorder.temporary(rows * cols), factor: None }
    }
}

impl Ops for GpuOps {
    type Tensor = GpuTensor;
    type Matrix = Matrix;
    type Kv = KvCache;

    fn upload_matrix(&mut self, _role: Role, weight: Weight) -> Result<Matrix> {
        Ok(Matrix::upload(&self.gpu, &weight)?)
    }

    async fn upload_rows(&mut self, _role: Role, source: &mut impl Rows) -> Result<Matrix> {
        let ([rows, _], step) = (source.shape(), source.rows_at_once());
        let mut matrix: Option<Matrix> = None;
        for first in (0..rows).step_by(step) {
            let part = source.read(first..rows.min(first + step)).await?;
            let matrix = match &matrix {
                Some(matrix) => matrix,
                None => matrix.insert(Matrix::with_room(&self.gpu, &part, rows)?),
            };
            matrix.write_rows(&self.gpu, first, &part);
        }
        Ok(matrix.expect("a matrix has rows"))
    }

    fn upload(&mut self, rows: usize, cols: usize, values: &[f32]) -> Result<GpuTensor> {
        assert_eq!(values.len(), rows * cols, "upload: values of {rows} x {cols}");
        Ok(GpuTensor { rows, cols, values: self.gpu.upload(values)?, factor: None })
    }

    fn new_kv(&mut self, shape: KvShape) -> Result<KvCache> {
        Ok(KvCache::new(&self.gpu, shape.kv_heads, shape.capacity, shape.head_dim, self.kv_dtype)?)
    }

    async fn read(&mut self, x: &GpuTensor) -> Result<Vec<f32>> {
        let mut values = self.recorder.read(&x.values)?.await?;
        if let Some(factor) = &x.factor {
            let factor = factor.of(&self.recorder.read(&factor.squares)?.await?, x.cols);
            values.iter_mut().for_each(|v| *v *= factor);
        }
        Ok(values)
    }

    fn embedding(&mut self, table: &Matrix, tokens: &[u32]) -> GpuTensor {
        let beyond = tokens.iter().find(|&&token| token as usize >= table.rows);
        assert!(beyond.is_none(), "embedding: token {beyond:?} of {}", table.rows);
        let ids = self.recorder.upload(tokens);
        let y = self.temporary(tokens.len(), table.cols);
        table.embedding(&mut self.recorder, &ids, tokens.len(), &y.values);
        y
    }

    fn rms_norm(&mut self, x: &GpuTensor, weight: &GpuTensor, eps: f32) -> GpuTensor {
        assert_eq!(x.cols, weight.values.len(), "rms_norm: one weight per column");
        let y = self.temporary(x.rows, x.cols);
        let norm = RmsNorm { rows: x.rows, cols: x.cols, eps };
        norm.record(&mut self.recorder, x.settled(), &weight.values, &y.values);
        y
    }

    fn linear(&mut self, x: &GpuTensor, matrix: &Matrix) -> GpuTensor {
        assert_eq!(x.cols, matrix.cols, "linear: inputs");
        let y = self.temporary(x.rows, matrix.rows);
        match &x.factor {
            Some(factor) => matrix.linear_normed(&mut self.recorder, &x.values, factor, &y.values),
            None => matrix.linear(&mut self.recorder, &x.values, x.rows, &y.values),
        }
        y
    }

    fn attention(
        &mut self,
        qkv: &GpuTensor,
        rope: &GpuTensor,
        shape: AttentionShape,
        spans: &mut [Span<'_, KvCache>],
    ) -> GpuTensor {
        let AttentionShape { heads, kv_heads, head_dim, scale, .. } = shape;
        assert_eq!(qkv.cols, (heads + 2 * kv_heads) * head_dim, "attention: columns of q | k | v");
        assert_eq!(
            spans.iter().map(|span| span.rows).sum::<usize>(),
            qkv.rows,
            "attention: spans must cover every row"
        );
        let q = self.temporary(qkv.rows, heads * head_dim);
        let y = self.temporary(qkv.rows, heads * head_dim);
        let mut first_row = 0;
        for Span { rows, past_len, kv } in spans {
            let (rows, past_len) = (*rows, *past_len);
            assert_eq!((kv.kv_heads, kv.head_dim), (kv_heads, head_dim), "attention: the cache's shape");
            let turn = Rope { first_row, rows, heads, past_len };
            turn.record(&mut self.recorder, qkv.settled(), &rope.values, &q.values, kv);
            let attention = Attention { first_row, rows, heads, past_len, scale };
            attention.record(&mut self.recorder, &q.values, kv, &y.values);
            first_row += rows;
        }
        y
    }

    fn swiglu(&mut self, gate_up: &GpuTensor) -> GpuTensor {
        let (rows, inner) = (gate_up.rows, gate_up.cols / 2);
        let y = self.temporary(rows, inner);
        Swiglu { rows, inner }.record(&mut self.recorder, gate_up.settled(), &y.values);
        y
    }

    fn add_assign(&mut self, x: &mut GpuTensor, y: &GpuTensor) {
        assert_eq!((x.rows, x.cols), (y.rows, y.cols), "add_assign: shapes");
        Add { len: x.rows * x.cols }.record(&mut self.recorder, x.settled(), y.settled());
    }

    fn select_rows(&mut self, x: &GpuTensor, rows: &[usize]) -> GpuTensor {
        assert!(rows.iter().all(|&row| row < x.rows), "select_rows: {rows:?} of {}", x.rows);
        let ids: Vec<u32> = rows.iter().map(|&row| u32::try_from(row).expect("a row number fits u32")).collect();
        let ids = self.recorder.upload(&ids);
        let y = self.temporary(rows.len(), x.cols);
        let select = SelectRows { count: rows.len(), cols: x.cols };
        select.record(&mut self.recorder, x.settled(), &ids, &y.values);
        y
    }

    fn add_rms_norm(&mut self, x: &mut GpuTensor, y: &GpuTensor, weight: &GpuTensor, eps: f32) -> GpuTensor {
        assert_eq!((x.rows, x.cols), (y.rows, y.cols), "add_rms_norm: shapes");
        assert_eq!(x.cols, weight.values.len(), "add_rms_norm: one weight per column");
        let normed = self.temporary(x.rows, x.cols);
        let norm = AddRmsNorm { rows: x.rows, cols: x.cols, eps };
        norm.record(&mut self.recorder, x.settled(), y.settled(), &weight.values, &normed.values);
        normed
    }

    fn linear_add_rms_norm(
        &mut self,
        x: &mut GpuTensor,
        y: &GpuTensor,
        matrix: &Matrix,
        weight: &GpuTensor,
        eps: f32,
    ) -> GpuTensor {
        if x.rows > 1 || !matrix.fuses(self.gpu.caps()) {
            let y = self.linear(y, matrix);
            return self.add_rms_norm(x, &y, weight, eps);
        }
        assert_eq!((y.rows, y.cols), (1, matrix.cols), "linear_add_rms_norm: inputs");
        assert_eq!((x.cols, weight.values.len()), (matrix.rows, matrix.rows), "linear_add_rms_norm: outputs");
        let mut normed = self.temporary(1, x.cols);
        let (y, x) = (y.settled(), x.settled());
        let factor = matrix.linear_add(&mut self.recorder, y, &weight.values, x, &normed.values, eps);
        normed.factor = Some(factor);
        normed
    }

    fn linear_swiglu(&mut self, x: &GpuTensor, gate_up: &Matrix) -> GpuTensor {
        match &x.factor {
            Some(factor) if gate_up.fuses(self.gpu.caps()) => {
                assert_eq!(x.cols, gate_up.cols, "linear_swiglu: inputs");
                let y = self.temporary(1, gate_up.rows / 2);
                gate_up.linear_normed_swiglu(&mut self.recorder, &x.values, factor, &y.values);
                y
            }
            _ => {
                let gate_up = self.linear(x, gate_up);
                self.swiglu(&gate_up)
            }
        }
    }
}

/// A token that was chosen on the device.
pub struct GpuToken {
    id: Buffer<u32>,
    readback: Readback<u32>,
}

impl Choose for GpuOps {
    type Token = GpuToken;

    fn ahead(&self) -> usize {
        self.ahead
    }

    fn choose(&mut self, logits: &GpuTensor) -> Result<GpuToken> {
        assert_eq!(logits.rows, 1, "choose: from one row");
        let id = self.recorder.temporary(1);
        Argmax { rows: 1, cols: logits.cols }.record(&mut self.recorder, logits.settled(), &id);
        Ok(GpuToken { readback: self.recorder.read(&id)?, id })
    }

    fn embedding_of(&mut self, table: &Matrix, token: &GpuToken) -> GpuTensor {
        let y = self.temporary(1, table.cols);
        table.embedding(&mut self.recorder, &token.id, 1, &y.values);
        y
    }

    async fn token(&mut self, token: GpuToken) -> Result<u32> {
        Ok(token.readback.await?[0])
    }
}
