//! The engine: the model written once over a small set of operations, the cache, the text side, and the conversation.

#![deny(missing_docs)]

pub mod error;
pub mod kv_cache;
pub mod model;
pub mod ops;
pub mod progress;

pub use error::{Error, Result};
pub use kv_cache::KvCache;
pub use progress::Progress;
