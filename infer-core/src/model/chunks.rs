//! Sizes of the chunks in which the rows of a text run.

use crate::ops::Forward;

/// The smallest chunk with the same result for each row, bit for bit, as any larger chunk.
pub use webgpu_kernels::gpu::FEWEST_ROWS;

/// Usual limit of a prefill chunk in tokens. A chunk may exceed it by fewer than [`FEWEST_ROWS`]. Bounds scratch memory.
pub const PREFILL_CHUNK: usize = 512;

/// The number of the next `left` rows to run: `limit`, or fewer if a product with a matrix of `values` values would keep the
/// device busy for long. `limit` is at least [`FEWEST_ROWS`].
///
/// Runs a few rows more rather than leave a chunk of fewer than [`FEWEST_ROWS`]: kernels for few rows sum in a different
/// order. So results do not depend on how a text is cut.
pub(crate) fn chunk_len<O: Forward>(ops: &O, left: usize, limit: usize, values: usize) -> usize {
    let chunk = ops.rows_at_once(2 * values as u64).clamp(FEWEST_ROWS, limit) / FEWEST_ROWS * FEWEST_ROWS;
    if left < chunk + FEWEST_ROWS { left } else { chunk }
}
