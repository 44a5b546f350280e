//! The engine: the model written once over a small set of operations, the cache, the text side, and the conversation.

#![deny(missing_docs)]

pub mod error;
pub mod kv_cache;
pub mod model;
pub mod ops;
pub mod perplexity;
pub mod progress;

pub use error::{Error, Result};
pub use kv_cache::KvCache;
pub use model::Decoder;
pub use progress::Progress;

/// Waits for a future of this crate. For native callers that own their thread: binaries, tests and benches.
pub fn block_on<F: std::future::Future>(future: F) -> F::Output {
    webgpu_kernels::block_on(future)
}
