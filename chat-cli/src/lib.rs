//! The parts of `chat-cli` that need no terminal, so that tests and benches can call them.
//!
//! [`Repl`] is the conversation: it reads [`Lines`] and prints the answers of an [`Assistant`]. [`throughput::measure`] measures
//! prefill and decode. `main.rs` parses flags, reads the environment and waits for the futures of this library.
//!
//! ```
//! use chat_cli::Command;
//!
//! assert_eq!(Command::parse("/set temperature=0").unwrap(), Some(Command::Set("temperature=0".into())));
//! assert_eq!(Command::parse("What is /set?").unwrap(), None);
//! ```

#![cfg_attr(not(test), warn(clippy::print_stdout, clippy::print_stderr, clippy::disallowed_methods))]

mod assistant;
pub mod bench_report;
pub mod command;
pub mod device;
mod error;
pub mod parallel;
mod printable;
mod progress;
pub mod repl;
pub mod report;
pub mod settings;
mod setup;
pub mod shapes;
pub mod throughput;
pub mod weights;

pub use assistant::{Answer, Assistant};
pub use command::Command;
pub use device::DeviceInfo;
pub use error::{Error, Result};
pub use printable::Printable;
pub use progress::Progress;
pub use repl::{Line, Lines, Repl};
pub use settings::Settings;
pub use setup::{Machine, NumberTypes, Setup};
pub use weights::Weights;
