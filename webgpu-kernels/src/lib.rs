//! WGSL kernels, their CPU references, and the GPU runtime that records them.

pub mod error;
pub use error::{Error, Result};
