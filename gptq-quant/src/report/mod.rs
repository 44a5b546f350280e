//! [`Report`]: settings, matrix errors, time and quality of a run, as JSON and as an HTML page.
//!
//! The program writes both into the output folder.

pub mod evaluate;
mod files;
pub mod matrix;
mod page;
mod summary;

pub use crate::output::folder::REPORT_FILES;
pub use summary::Report;
