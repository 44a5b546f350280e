//! The operations of a decoder-only transformer, as traits.
//!
//! `model/` is written once over them. [`gpu::GpuOps`] records the kernels of `webgpu-kernels`, [`candle::CandleOps`] computes
//! on the CPU, and the quantizer wraps either to observe the inputs of each matrix.
//!
//! | trait | operations | used by |
//! |---|---|---|
//! | [`Backend`] | tensor types, reading a tensor | all others |
//! | [`Loading`] | uploads of weights, allocation of caches | `model/weights.rs`, `model/parts.rs` |
//! | [`Forward`] | one method per operation of a layer | `model/decoder.rs`, `model/layer.rs` |
//! | [`Losses`] | cross-entropy, KL divergence | `model/perplexity.rs`, the quantizer's evaluation |
//! | [`Choose`] | choice of the next token on the device | `model/session.rs` |
//!
//! [`Ops`] is the sum of the first four.

mod all;
mod backend;
#[cfg(feature = "native")]
pub mod candle;
mod choose;
mod forward;
pub mod gpu;
mod loading;
mod losses;
mod shapes;

pub use webgpu_kernels::sample::{IN_PROMPT, Past, Rules};

pub use all::Ops;
pub use backend::Backend;
pub use choose::{Choice, Choose, Source};
pub use forward::Forward;
pub(crate) use forward::{begin_layer, finish_layer};
pub use loading::{Loading, RowSource};
pub use losses::Losses;
pub use shapes::{AttentionShape, KvShape, LayerEnd, LayerStart, PAGE, RowSpan};
