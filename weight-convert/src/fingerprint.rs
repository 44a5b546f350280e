//! [`fingerprint`]: all inputs of a conversion. A conversion resumes an interrupted one only if both are equal.

use std::fs;

use model_format::{Checkpoint, checkpoint::file_of, steps, tensor_cache::ShardSum};
use serde_json::{Value, json};

use crate::Plan;

/// The inputs that determine the bytes of a conversion: algorithm numbers, options, and the source (configuration, tensors, and
/// its files by size and time).
pub(crate) fn fingerprint(checkpoint: &dyn Checkpoint, plan: &Plan, shard_size: usize, refit: bool) -> Value {
    json!({
        "steps": steps::numbers(steps::CONVERT),
        "quantization": plan.format.name,
        "shard_size": shard_size,
        "refit": refit,
        "source": source(checkpoint),
    })
}

fn source(checkpoint: &dyn Checkpoint) -> String {
    let mut sum = ShardSum::default();
    let mut add = |text: &str| {
        sum.update(&(text.len() as u64).to_le_bytes());
        sum.update(text.as_bytes());
    };
    add(checkpoint.config_json());
    let mut last = String::new();
    for info in checkpoint.tensors() {
        add(&format!("{} {} {:?} {}", info.name, info.dtype, info.shape, info.file));
        let file = file_of(checkpoint, &info.name);
        if file != last {
            if let Ok(metadata) = fs::metadata(&file) {
                add(&format!("{file} {} {:?}", metadata.len(), metadata.modified().ok()));
            }
            last = file;
        }
    }
    sum.finish()
}
