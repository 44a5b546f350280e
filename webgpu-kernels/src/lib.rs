//! WGSL kernels, their CPU references, and the GPU runtime that records them.

pub mod error;
pub use error::{Error, Result};

/// Waits for a future of this crate. For native callers that own their thread: binaries, tests and benches.
pub fn block_on<F: std::future::Future>(future: F) -> F::Output {
    pollster::block_on(future)
}
