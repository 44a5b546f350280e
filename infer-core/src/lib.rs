//! The engine: a model in MLC's or Hugging Face's files, on a GPU or the CPU, that one can talk to.
//!
//! [`Engine`] loads a model, [`Engine::chat`] begins an answer, [`Generation::next`] pulls it. The model is written once
//! over [`ops::Ops`] ([`model::Decoder`]); the engine is asynchronous and owns no thread. It knows nothing of terminals,
//! HTTP or JavaScript.
//!
//! ```no_run
//! use infer_core::{Device, Engine, LoadOptions, Message, SamplingParams, block_on};
//! use model_format::DirFiles;
//!
//! block_on(async {
//!     let files = DirFiles::new("SmolLM2-135M-Instruct-q4f16_1");
//!     let device = Device::Cpu(Default::default());
//!     let mut engine = Engine::load_mlc(&files, device, &LoadOptions::default(), &mut ()).await?;
//!     let mut answer = engine.chat(&[Message::user("What is the capital of France?")], SamplingParams::greedy())?;
//!     while let Some(chunk) = answer.next().await? {
//!         print!("{}", chunk.text);
//!     }
//!     Ok::<(), infer_core::Error>(())
//! })?;
//! # Ok::<(), infer_core::Error>(())
//! ```

#![deny(missing_docs)]

pub mod chat_template;
mod device;
mod engine;
mod error;
mod generation;
mod kept;
mod kv_cache;
mod loaded_model;
mod logprobs;
mod memory;
pub mod model;
pub mod ops;
pub mod perplexity;
mod plan;
mod profile;
mod progress;
pub mod prompt_lookup;
pub mod sampler;
mod selftest;
pub mod stop;
pub mod tokenizer;
mod tuning;

pub use chat_template::{ChatTemplate, Message};
pub use device::Device;
pub use engine::Engine;
pub use error::{Error, Result};
pub use generation::{Chunk, FinishReason, Generation, Stats, Suspended};
pub use kept::{Kept, KeptFolder};
pub use kv_cache::KvCache;
pub use loaded_model::{LoadOptions, LoadedModel};
pub use logprobs::{MOST_LOGPROBS, TokenLogprobs};
pub use memory::Need;
pub use model::Decoder;
pub use plan::{PlannedWork, planned_work};
pub use profile::{KernelTime, StepProfile};
pub use progress::Progress;
pub use sampler::SamplingParams;
pub use selftest::Checked;
pub use tokenizer::Tokenizer;
pub use tuning::{Tuned, Tuning};
pub use webgpu_kernels::{
    Error as GpuError, Gpu, KvDtype,
    gpu::{AdapterSummary, DeviceType, OpenOptions, Selection, Spawn},
    selftest::{Line as KernelCheck, run_all as check_kernels},
};

/// Waits for a future of this crate. For native callers that own their thread: binaries, tests and benches.
#[cfg(feature = "native")]
pub fn block_on<F: Future>(future: F) -> F::Output {
    webgpu_kernels::gpu::block_on(future)
}
