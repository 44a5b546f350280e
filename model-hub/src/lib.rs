//! Opens models: [`open`] turns a model's path or name into a checkpoint or an MLC folder.
//!
//! | source | example |
//! |---|---|
//! | a Hugging Face folder: `config.json` and safetensors, float or GPTQ | `./SmolLM2-135M-Instruct` |
//! | a GGUF file | `model.Q4_1.gguf` |
//! | an MLC folder: `mlc-chat-config.json` and shards | `./SmolLM2-q4f16_1-MLC` |
//! | a repository of the hub with a checkpoint or an MLC folder | `HuggingFaceTB/SmolLM2-135M-Instruct@main` |
//! | the demo model | `demo` |
//!
//! [`fetch_data_file`] downloads a file of a data set.
//!
//! An existing path takes precedence over a name. Downloads go to the hub's standard cache, which other tools on the
//! machine share. This crate handles the network and the cache; `model_format` interprets the files.
//!
//! ```no_run
//! use model_hub::{HubConfig, Model, open};
//!
//! // Pass the environment in; this crate does not read it.
//! let hub = HubConfig::from_vars(|name| std::env::var(name).ok())?;
//! match open("HuggingFaceTB/SmolLM2-135M-Instruct", &hub, &mut ())? {
//!     Model::Checkpoint(checkpoint) => println!("{} tensors", checkpoint.tensors().len()),
//!     Model::Mlc(folder) => println!("already converted: {}", folder.display()),
//! }
//! # Ok::<(), model_hub::Error>(())
//! ```

#![cfg_attr(not(test), warn(clippy::print_stdout, clippy::print_stderr, clippy::disallowed_methods))]

mod config;
pub mod demo;
mod error;
mod gguf;
mod hub;
mod progress;
mod save;
mod source;

pub use config::HubConfig;
pub use error::{Error, Result};
pub use gguf::GgufCheckpoint;
pub use hub::fetch_data_file;
pub use progress::Progress;
pub use save::save_checkpoint;
pub use source::{Model, open};
