//! [`Backend`]: the tensor types of a device.

use crate::Result;

/// The tensor types of a device, and the way back to the host.
///
/// Activations are f32 matrices `[rows, cols]`, one row per token. Operations panic on wrong shapes: those are bugs of this
/// crate, not faults of a file.
#[expect(async_fn_in_trait, reason = "the engine owns no thread, so no Send bound is wanted")]
pub trait Backend {
    /// Activations `[rows, cols]`, and vectors `[1, cols]`.
    type Tensor;
    /// A weight matrix `[n, k]` of `n` outputs and `k` inputs, in the format in which it was loaded.
    type Matrix;
    /// Keys and values of one layer: a pool of pages.
    type Kv;
    /// The rows of a batch: their positions, and the pages of their sequences.
    type Rows;

    /// The values of `x`, row-major. Waits for the device.
    async fn read(&mut self, x: &Self::Tensor) -> Result<Vec<f32>>;
}
