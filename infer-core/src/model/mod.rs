//! The model: the forward pass, written once over [`crate::ops`], its weights, its KV cache, and the losses of a text.

pub mod chunks;
pub mod decoder;
pub(crate) mod kv_cache;
mod kv_pool;
mod kv_windows;
mod layer;
mod parts;
pub mod perplexity;
mod profile;
mod rope_tables;
pub mod session;
pub mod steps;
pub mod weights;

pub use decoder::{Decoder, Sequence};
pub use kv_cache::KvCache;
pub use kv_pool::KvPool;
pub use kv_windows::KvWindows;
pub use layer::Layer;
pub(crate) use layer::attention_shape;
pub use parts::Parts;
pub use profile::{KernelTime, StepProfile};
pub use session::Session;
pub use weights::{load_checkpoint, load_mlc, load_random};
