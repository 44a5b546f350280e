//! [`LoadOptions`]: limits and storage for loading a model.

use std::{sync::Arc, time::Duration};

use crate::device::{DeviceCache, Tuning};

/// Limits and storage for loading a model.
#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    /// Limit of a conversation in tokens, prompt and answers together. `None`: the model's own context, at most 4096, and at most what fits into the
    /// device's memory.
    pub context: Option<usize>,
    /// Number of conversations of `context` tokens that the KV cache has room for. `None`: one.
    pub conversations: Option<usize>,
    /// Limit of the device memory in bytes. `None`: the free memory that the driver reports, or nine tenths of the total.
    pub memory: Option<u64>,
    /// Storage for facts about devices: results of kernel checks, tuned choices, compiled pipelines. `None`: check the
    /// kernels in every run, and use presets.
    pub device_cache: Option<Arc<dyn DeviceCache>>,
    /// When to tune kernels to the device.
    pub tuning: Tuning,
    /// Time limit of tuning. `None`: 4.5 seconds.
    pub tuning_budget: Option<Duration>,
}
