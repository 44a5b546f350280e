//! The command `gptq-quant`: flags, calibration texts, device, progress and reports around the library.

mod args;
mod device;
mod errors;
mod progress;
mod quantize;
mod report;
mod texts;

pub use args::Args;
pub use errors::{HINTS, is_cancelled};
pub use quantize::run;
