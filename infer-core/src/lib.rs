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

//!
//! `block_on` waits in the calling thread. Under tokio, or any other executor, on a GPU, a [`Driver`] waits in a thread that the
//! program gives it, and wakes the futures. One is enough for all sessions of a [`Gpu`], which may be on many threads:
//!
//! ```no_run
//! # use infer_core::{Device, Engine, Gpu, KvDtype, LoadOptions, Message, OpenOptions, SamplingParams, block_on};
//! # use model_format::DirFiles;
//! let gpu = block_on(Gpu::open(&Default::default(), OpenOptions::default()))?;
//! let driver = gpu.driver();
//! // It ends with the last clone of `gpu`.
//! std::thread::spawn(move || driver.run());
//! let files = DirFiles::new("SmolLM2-135M-Instruct-q4f16_1");
//! let device = Device::Gpu(gpu, KvDtype::F16);
//! let mut engine = block_on(Engine::load_mlc(&files, device, &LoadOptions::default(), &mut ()))?;
//! let answer = async move {
//!     let mut answer = engine.chat(&[Message::user("What is the capital of France?")], SamplingParams::greedy())?;
//!     while let Some(chunk) = answer.next().await? {
//!         print!("{}", chunk.text);
//!     }
//!     Ok::<(), infer_core::Error>(())
//! };
//! // For instance `tokio::spawn(answer)`.
//! fn spawn(_: impl Future + Send + 'static) {}
//! spawn(answer);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A program with a loop of its own calls [`Gpu::poll`] in it instead, before it polls the futures.

#![cfg_attr(not(test), warn(clippy::print_stdout, clippy::print_stderr, clippy::disallowed_methods))]

mod chain_record;
mod chat_defaults;
pub mod chat_template;
mod device;
#[cfg(feature = "native")]
mod device_choice;
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
mod prefix;
mod profile;
mod progress;
pub mod prompt_lookup;
pub mod sampler;
mod selftest;
pub mod stop;
mod text_files;
pub mod tokenizer;
mod tuning;
mod vocabulary;

pub use chat_defaults::{ChatDefaults, Origin};
pub use chat_template::{ChatTemplate, Message};
pub use device::Device;
#[cfg(feature = "native")]
pub use device_choice::{DeviceChoice, OpenedDevice, Place};
pub use engine::Engine;
pub use error::{Error, Result};
pub use generation::{Chunk, FinishReason, Generation, Stats, Suspended};
pub use kept::{Kept, KeptFolder};
pub use kv_cache::KvCache;
pub use loaded_model::{LoadOptions, LoadedModel};
pub use logprobs::{MOST_LOGPROBS, TokenLogprobs};
pub use memory::{Need, Room};
pub use model::Decoder;
pub use plan::{PlannedWork, planned_work};
pub use profile::{KernelTime, StepProfile};
pub use progress::Progress;
pub use sampler::SamplingParams;
pub use selftest::{Checked, check_full};
pub use tokenizer::Tokenizer;
pub use tuning::{Tuned, Tuning};
pub use vocabulary::{check_ids, check_tokens};
pub use webgpu_kernels::{
    Error as GpuError, Gpu, KvDtype,
    gpu::{AdapterSummary, DeviceType, OpenOptions, Selection, Spawn},
    selftest::{Line as KernelCheck, run_all as check_kernels},
};

/// Lets executors other than [`block_on`] run this crate's futures on a GPU: see [`Gpu::driver`].
#[cfg(feature = "native")]
pub use webgpu_kernels::gpu::Driver;

/// Waits for a future of this crate. For native callers that own their thread: binaries, tests and benches.
#[cfg(feature = "native")]
#[allow(clippy::disallowed_methods, reason = "offers the wait to programs")]
pub fn block_on<F: Future>(future: F) -> F::Output {
    webgpu_kernels::gpu::block_on(future)
}
