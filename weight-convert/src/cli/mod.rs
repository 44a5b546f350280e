//! The command `weight-convert`: flags, sources, progress and reports around the library.

mod args;
mod commands;
mod errors;
mod progress;
mod report;
mod source;

pub use args::Args;
pub use commands::run;
pub use errors::{HINTS, is_cancelled};
