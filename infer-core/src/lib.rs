//! The engine: runs a model in MLC's or Hugging Face's files on a GPU or the CPU.
//!
//! [`Engine`] loads a model, [`Engine::chat`] starts an answer, and [`Generation::next`] pulls it piece by piece.
//!
//! ```no_run
//! use infer_core::{Device, Engine, LoadOptions, Message, SamplingParams, block_on};
//! use model_format::DirFiles;
//!
//! block_on(async {
//!     let files = DirFiles::new("SmolLM2-135M-Instruct-q4f16_1");
//!     let device = Device::Cpu(Default::default());
//!     let engine = Engine::load_mlc(&files, device, &LoadOptions::default(), &mut ()).await?;
//!     let mut answer = engine.chat(&[Message::user("What is the capital of France?")], SamplingParams::greedy())?;
//!     while let Some(chunk) = answer.next().await? {
//!         print!("{}", chunk.text);
//!     }
//!     Ok::<(), infer_core::Error>(())
//! })?;
//! # Ok::<(), infer_core::Error>(())
//! ```
//!
//! The engine is asynchronous, owns no thread, and knows nothing of terminals, HTTP or JavaScript. `block_on` waits in the
//! calling thread. Under tokio or another executor, on a GPU, a [`Driver`] waits in a thread of the program and wakes the
//! futures. One driver serves all sessions of a [`Gpu`], on any threads:
//!
//! ```no_run
//! # use infer_core::{Device, Engine, Gpu, KvDtype, LoadOptions, Message, OpenOptions, SamplingParams, block_on};
//! # use model_format::DirFiles;
//! let gpu = block_on(Gpu::open(&Default::default(), OpenOptions::default()))?;
//! let driver = gpu.driver();
//! // The thread ends with the last clone of `gpu`.
//! std::thread::spawn(move || driver.run());
//! let files = DirFiles::new("SmolLM2-135M-Instruct-q4f16_1");
//! let device = Device::Gpu(gpu, KvDtype::F16);
//! let engine = block_on(Engine::load_mlc(&files, device, &LoadOptions::default(), &mut ()))?;
//! let answer = async move {
//!     let mut answer = engine.chat(&[Message::user("What is the capital of France?")], SamplingParams::greedy())?;
//!     while let Some(chunk) = answer.next().await? {
//!         print!("{}", chunk.text);
//!     }
//!     Ok::<(), infer_core::Error>(())
//! };
//! // For example `tokio::spawn(answer)`.
//! fn spawn(_: impl Future + Send + 'static) {}
//! spawn(answer);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A program with its own event loop calls [`Gpu::poll`] there instead, before it polls the futures.
//!
//! Any number of answers may be in progress on one engine. They run together, in steps that whichever generation needs a token
//! runs. [`LoadOptions::conversations`] gives the KV cache room for them. [`TokenEngine`] is the same without tokenizer and
//! template.
//!
//! The folder `examples/` has complete programs: a chat, several answers at once, and a custom sampler. The model is written
//! once over the traits in [`ops`]: see [`model::Decoder`].

#![cfg_attr(not(test), warn(clippy::print_stdout, clippy::print_stderr, clippy::disallowed_methods))]

mod answer;
mod device;
mod error;
mod loading;
mod memory;
pub mod model;
pub mod ops;
mod progress;
mod sampling;
mod schedule;
mod text;

pub use answer::{CacheUse, Chunk, Engine, FinishReason, Generation, Stats, Suspended, TokenEngine};
pub use device::{CacheFolder, Checked, Device, DeviceCache, Tuned, Tuning, check_full};
#[cfg(feature = "native")]
pub use device::{DeviceChoice, OpenedDevice, PickedDevice};
pub use error::{Error, Result};
pub use loading::{LoadOptions, LoadedModel, PlannedWork, planned_work};
pub use memory::{Need, Room};
pub use model::{Decoder, KernelTime, KvCache, KvPool, StepProfile, perplexity};
pub use progress::Progress;
pub use sampling::{
    ChatDefaults, MOST_LOGPROBS, Origin, TokenLogprobs, prompt_lookup,
    sampler::{self, SamplingParams},
};
pub use text::{
    PrefixToken,
    chat_template::{self, ChatTemplate, Message},
    check_ids, check_tokens, stop,
    tokenizer::{self, Tokenizer},
};
pub use webgpu_kernels::{
    Error as GpuError, Gpu, KvDtype,
    gpu::{AdapterSummary, DeviceType, OpenOptions, Selection, Spawn},
    selftest::{Line as KernelCheck, run_all as check_kernels},
};

/// Wakes this crate's futures under executors other than [`block_on`]: see [`Gpu::driver`].
#[cfg(feature = "native")]
pub use webgpu_kernels::gpu::Driver;

/// Waits for a future of this crate, in the calling thread. For native programs, tests and benches.
#[cfg(feature = "native")]
#[allow(clippy::disallowed_methods, reason = "offers the wait to programs")]
pub fn block_on<F: Future>(future: F) -> F::Output {
    webgpu_kernels::gpu::block_on(future)
}
