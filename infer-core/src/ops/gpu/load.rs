//! Uploads of weights to a GPU.

use model_format::{Role, Weight};
use webgpu_kernels::{KvPool, Matrix, gpu::Recorder};

use super::{GpuOps, GpuTensor};
use crate::{
    Result,
    ops::{KvShape, Loading, RowSource},
};

/// A matrix that is uploaded part by part, from its first row to its last.
struct MatrixUpload {
    rows: usize,
    done: usize,
    matrix: Option<Matrix>,
}

impl MatrixUpload {
    fn new(rows: usize) -> MatrixUpload {
        MatrixUpload { rows, done: 0, matrix: None }
    }

    fn add(&mut self, recorder: &Recorder, part: &Weight) -> Result<()> {
        let matrix = match &self.matrix {
            Some(matrix) => matrix,
            None => self.matrix.insert(recorder.with_room(|gpu| Matrix::with_room(gpu, part, self.rows))?),
        };
        matrix.write_rows(recorder.gpu(), self.done, part);
        self.done += part.shape()[0];
        Ok(())
    }

    fn finish(self) -> Matrix {
        assert_eq!(self.done, self.rows, "rows of a matrix");
        self.matrix.expect("a matrix has rows")
    }
}

impl Loading for GpuOps {
    fn upload_matrix(&mut self, _role: Role, weight: Weight) -> Result<Matrix> {
        let matrix = self.recorder.with_room(|gpu| Matrix::upload(gpu, &weight))?;
        Ok(self.loaded(matrix))
    }

    fn upload_parts(
        &mut self,
        _role: Role,
        rows: usize,
        parts: &mut dyn Iterator<Item = Result<Weight>>,
    ) -> Result<Matrix> {
        let mut upload = MatrixUpload::new(rows);
        for part in parts {
            upload.add(&self.recorder, &part?)?;
        }
        Ok(self.loaded(upload.finish()))
    }

    async fn upload_rows(&mut self, _role: Role, source: &mut impl RowSource) -> Result<Matrix> {
        let ([rows, cols], step) = (source.shape(), source.rows_at_once());
        if let Some(format) = source.stored_format() {
            let matrix = self.recorder.with_room(|gpu| Matrix::of_format(gpu, format, rows, cols))?;
            for first in (0..rows).step_by(step) {
                let [codes, scales] = source.stored(first..rows.min(first + step)).await?;
                matrix.write_stored(&self.gpu, first, &codes, &scales);
            }
            return Ok(self.loaded(matrix));
        }
        let mut upload = MatrixUpload::new(rows);
        for first in (0..rows).step_by(step) {
            upload.add(&self.recorder, &source.read(first..rows.min(first + step)).await?)?;
        }
        Ok(self.loaded(upload.finish()))
    }

    fn upload(&mut self, rows: usize, cols: usize, values: &[f32]) -> Result<GpuTensor> {
        assert_eq!(values.len(), rows * cols, "upload: values of {rows} x {cols}");
        let values = match self.recorder.hollow(values.len()) {
            Some(hollow) => hollow,
            None => self.recorder.with_room(|gpu| gpu.upload(values))?,
        };
        Ok(GpuTensor { rows, cols, values, factor: None })
    }

    fn new_kv(&mut self, shape: KvShape) -> Result<KvPool> {
        let KvShape { kv_heads, pages, head_dim } = shape;
        if self.recorder.hollow::<u32>(0).is_some() {
            return Ok(KvPool::hollow(&self.recorder, kv_heads, pages, head_dim, self.kv_dtype));
        }
        Ok(self.recorder.with_room(|gpu| KvPool::new(gpu, kv_heads, pages, head_dim, self.kv_dtype))?)
    }
}
