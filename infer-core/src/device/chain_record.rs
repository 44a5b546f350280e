//! Devices on which a kernel chain (`webgpu_kernels::gemv_chain`) failed. Stored, so that no later process tries it again.

use serde_json::json;
use webgpu_kernels::{Gpu, gemv_chain};

use super::cache::{DeviceCache, read_json};

/// Number of devices in the file. When it is full, it is emptied.
const MAX_DEVICES: usize = 64;
const FILE: &str = "chains.json";

/// Disables chains on `gpu` if they failed there before.
pub(crate) fn disable_if_failed(gpu: &Gpu, cache: Option<&dyn DeviceCache>) {
    if cache.is_some_and(|cache| read_json(cache, FILE).contains_key(&key(gpu))) {
        gemv_chain::switch_off(gpu);
    }
}

/// Stores that chains failed on `gpu`. Returns the message for the user.
pub(crate) fn add(gpu: &Gpu, cache: Option<&dyn DeviceCache>, reason: &str) -> String {
    let name = &gpu.summary().name;
    let is_stored = cache.is_some_and(|cache| {
        let mut known = read_json(cache, FILE);
        if known.len() >= MAX_DEVICES {
            known.clear();
        }
        known.insert(key(gpu), json!({ "reason": reason }));
        cache.write(FILE, serde_json::Value::Object(known).to_string().as_bytes())
    });
    let until = if is_stored { format!("until `{FILE}` is removed") } else { "until this program ends".into() };
    format!(
        "{reason} on `{name}`: {until}, kernel chains are disabled on this device; answers stay the same but are slower"
    )
}

/// Identifies an adapter with its driver. A new driver gets a new attempt.
fn key(gpu: &Gpu) -> String {
    let summary = gpu.summary();
    format!("{}, {}, {}", summary.name, summary.backend, summary.driver)
}
