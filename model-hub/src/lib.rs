//! Where models come from: [`open`] turns what a user names into a checkpoint or an MLC folder.
//!
//! | source | example |
//! |---|---|
//! | a Hugging Face folder: `config.json` and safetensors, float or GPTQ | `./SmolLM2-135M-Instruct` |
//! | a GGUF file | `model.Q4_1.gguf` |
//! | an MLC folder: `mlc-chat-config.json` and shards | `./SmolLM2-q4f16_1-MLC` |
//! | a repository of the hub, of either kind | `HuggingFaceTB/SmolLM2-135M-Instruct@main` |
//! | the demo model | `demo` |
//!
//! [`fetch_data_file`] gets a file of one of the hub's data sets.
//!
//! A path that exists always wins over a name. Files from the hub are kept in its standard cache, shared with the other
//! tools of a machine. This crate knows the network and the cache; what the files mean is `model_format`'s.
//!
//! ```no_run
//! use model_hub::{HubConfig, Model, open};
//!
//! // A binary passes its environment down; this crate reads none.
//! let hub = HubConfig::from_vars(|name| std::env::var(name).ok())?;
//! match open("HuggingFaceTB/SmolLM2-135M-Instruct", &hub, &mut ())? {
//!     Model::Checkpoint(checkpoint) => println!("{} tensors", checkpoint.tensors().len()),
//!     Model::Mlc(folder) => println!("converted already: {}", folder.display()),
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
