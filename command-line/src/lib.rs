//! Shared parts of the command-line programs: progress bars, errors with hints, exit codes, Ctrl-C, JSON reports, and facts
//! about this process and machine. Used by binaries and benches only, so this library may print, exit and read the environment.
//!
//! A program ends with [`finish`], which prints the error and its hint:
//!
//! ```
//! use std::process::ExitCode;
//!
//! fn run() -> anyhow::Result<ExitCode> {
//!     let hub = command_line::hub_config()?;
//!     model_hub::open("./no-such-folder", &hub, &mut command_line::Bars::new(Default::default()))?;
//!     Ok(ExitCode::SUCCESS)
//! }
//!
//! assert_eq!(command_line::finish(run(), &[]), ExitCode::FAILURE);
//! ```

pub mod bars;
mod folders;
mod large_pages;
mod memory;
mod outcome;
mod report;
mod stop;
pub mod threads;

pub use bars::Bars;
pub use folders::{cache_folder, state_folder};
pub use large_pages::LargePages;
pub use memory::{available_memory, peak_memory};
pub use outcome::{Cause, HintOf, finish, hint, is_interruption, print_error};
pub use report::print_json;
pub use stop::{INTERRUPTED, Stop, on_ctrl_c};

/// The hub that `HF_ENDPOINT`, `HF_HOME` and related variables name.
pub fn hub_config() -> model_hub::Result<model_hub::HubConfig> {
    model_hub::HubConfig::from_vars(|name| std::env::var(name).ok())
}
