//! Which devices failed at a chain (`webgpu_kernels::gemv_chain`), kept so that no later process tries it there again.

use serde_json::json;
use webgpu_kernels::{Gpu, gemv_chain};

use crate::kept::{Kept, read_json};

/// Most devices that are kept.
const MOST_KEPT: usize = 64;
const FILE: &str = "chains.json";

/// Switches chains off on a device that failed before.
pub(crate) fn take_up(gpu: &Gpu, kept: Option<&dyn Kept>) {
    if kept.is_some_and(|kept| read_json(kept, FILE).contains_key(&key(gpu))) {
        gemv_chain::switch_off(gpu);
    }
}

/// Keeps that a device failed; returns what to tell the user.
pub(crate) fn add(gpu: &Gpu, kept: Option<&dyn Kept>, reason: &str) -> String {
    let name = &gpu.summary().name;
    let is_kept = kept.is_some_and(|kept| {
        let mut known = read_json(kept, FILE);
        if known.len() >= MOST_KEPT {
            known.clear();
        }
        known.insert(key(gpu), json!({ "reason": reason }));
        kept.write(FILE, serde_json::Value::Object(known).to_string().as_bytes())
    });
    let until =
        if is_kept { format!("from now on, until `{FILE}` is removed,") } else { "until this program ends".into() };
    format!(
        "{reason} on `{name}`: {until} every step of a layer is a dispatch of its own there, which is slower and gives the same text"
    )
}

/// An adapter with its driver: another driver may do better.
fn key(gpu: &Gpu) -> String {
    let summary = gpu.summary();
    format!("{}, {}, {}", summary.name, summary.backend, summary.driver)
}
