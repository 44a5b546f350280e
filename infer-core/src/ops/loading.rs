//! [`Loading`]: uploads of weights, and allocation of KV caches.

use std::ops::Range;

use model_format::{FileBytes, Role, Weight};
use webgpu_kernels::WeightFormat;

use super::{backend::Backend, shapes::KvShape};
use crate::Result;

/// Uploads of weights, and allocation of KV caches.
///
/// Errors of every method: out of memory; a failure of the weight's source.
#[expect(async_fn_in_trait, reason = "the engine owns no thread, so no Send bound is wanted")]
pub trait Loading: Backend {
    /// Uploads a whole weight matrix. `role` is its place in the decoder.
    fn upload_matrix(&mut self, role: Role, weight: Weight) -> Result<Self::Matrix>;

    /// Uploads a matrix of `rows` rows from consecutive parts. Every part but the last has an even number of rows.
    fn upload_parts(
        &mut self,
        role: Role,
        rows: usize,
        parts: &mut dyn Iterator<Item = Result<Weight>>,
    ) -> Result<Self::Matrix> {
        let whole = Weight::concat_rows(parts.collect::<Result<_>>()?);
        assert_eq!(whole.shape()[0], rows, "upload_parts: rows");
        self.upload_matrix(role, whole)
    }

    /// Uploads a matrix while `source` reads it.
    async fn upload_rows(&mut self, role: Role, source: &mut impl RowSource) -> Result<Self::Matrix> {
        let [rows, _] = source.shape();
        let whole = source.read(0..rows).await?;
        self.upload_matrix(role, whole)
    }

    /// Uploads values `[rows, cols]`: norm weights, a rotary table, or hidden states of the quantizer.
    fn upload(&mut self, rows: usize, cols: usize, values: &[f32]) -> Result<Self::Tensor>;

    /// Allocates the pool of keys and values of one layer.
    fn new_kv(&mut self, shape: KvShape) -> Result<Self::Kv>;
}

/// A weight matrix in a file, read by ranges of rows.
#[expect(async_fn_in_trait, reason = "the engine owns no thread, so no Send bound is wanted")]
pub trait RowSource {
    /// Rows (outputs) and columns (inputs).
    fn shape(&self) -> [usize; 2];
    /// Number of rows to read at a time: an even number, or all rows.
    fn rows_at_once(&self) -> usize;
    /// Reads a range of rows.
    async fn read(&mut self, rows: Range<usize>) -> Result<Weight>;
    /// The format of the stored bytes, if a GPU uses the same bytes. Otherwise `None`.
    fn stored_format(&self) -> Option<WeightFormat>;
    /// The stored bytes of a range of rows: codes (or numbers), then the scales of codes.
    async fn stored(&mut self, rows: Range<usize>) -> Result<[FileBytes; 2]>;
}
