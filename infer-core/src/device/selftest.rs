//! Checks the kernels of a model when it is loaded onto a GPU, and disables wrong ones. The result is stored, so that each
//! device, driver and kernel version is checked once. `webgpu_kernels::selftest` runs the cases.

use model_format::DecoderConfig;
use serde_json::{Value, json};
use web_time::Instant;
use webgpu_kernels::{
    Gpu,
    gemv_chain::{self, ChainShape, EndShape, Heads},
    selftest::{self, Line, Switch, Workload},
};

use super::cache::{DeviceCache, read_json};
use crate::Result;

/// Number of results in the file. When it is full, it is emptied.
const MAX_RESULTS: usize = 64;
const FILE: &str = "selftest.json";

/// Cost of the kernel check of a model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Checked {
    /// Cases that ran; 0 if a stored result was used.
    pub cases: usize,
    /// Duration in seconds, compilation of the cases included.
    pub seconds: f64,
}

/// Disables the kernels that are wrong on `gpu`, by a stored result or by running the cases.
pub(crate) async fn ensure(gpu: &Gpu, workload: &Workload, cache: Option<&dyn DeviceCache>) -> Result<Checked> {
    let start = Instant::now();
    gpu.prepared().await;
    // Disabled chains are not checked, so such a result has its own key.
    let chains = if gemv_chain::is_off(gpu) { ", no chains" } else { "" };
    let key = format!("{:016x}{chains}", selftest::key(gpu, workload));
    let before = gpu.switched_off();
    let mut known = cache.map(|cache| read_json(cache, FILE)).unwrap_or_default();
    if let Some(switches) = known.get(&key).and_then(switches) {
        let already = gpu.switched_off();
        switches.into_iter().filter(|switch| !already.contains(switch)).for_each(|switch| gpu.switch_off(switch));
        return Ok(Checked { cases: 0, seconds: start.elapsed().as_secs_f64() });
    }
    let (mut switches, cases) = selftest::run(gpu, workload).await?;
    switches.retain(|switch| !before.contains(switch));
    if let Some(cache) = cache {
        if known.len() >= MAX_RESULTS {
            known.clear();
        }
        let entry = switches.iter().map(|Switch { kernel, flag }| json!({"kernel": kernel, "flag": flag}));
        known.insert(key, Value::Array(entry.collect()));
        // If the write fails, the next load runs the cases again.
        cache.write(FILE, Value::Object(known).to_string().as_bytes());
    }
    Ok(Checked { cases, seconds: start.elapsed().as_secs_f64() })
}

/// Compares kernel chains, compiled for the full size of a model, with the separate kernels of the same device. Calls
/// `progress` with the number of finished cases and of all cases.
///
/// Errors: a failure of the device, for example out of memory.
pub async fn check_full(gpu: &Gpu, config: &DecoderConfig, progress: impl FnMut(usize, usize)) -> Result<Vec<Line>> {
    let (heads, kv_heads, head_dim) = (config.num_attention_heads, config.num_key_value_heads, config.head_dim);
    let shape = ChainShape {
        hidden: config.hidden_size,
        end: Some(EndShape { attended: heads * head_dim, inner: config.intermediate_size }),
        heads: Some(Heads { heads, kv_heads, head_dim }),
    };
    Ok(gemv_chain::check_full(gpu, &shape, progress).await?)
}

fn switches(entry: &Value) -> Option<Vec<Switch>> {
    let switch = |value: &Value| {
        let flag = match &value["flag"] {
            Value::Null => None,
            flag => Some(flag.as_str()?.to_string()),
        };
        Some(Switch { kernel: value["kernel"].as_str()?.to_string(), flag })
    };
    entry.as_array()?.iter().map(switch).collect()
}

#[cfg(all(test, feature = "native"))]
mod tests {
    use webgpu_kernels::{KvDtype, WeightFormat, gpu::OpenOptions};

    use super::*;
    use crate::{CacheFolder, device::test_gpu::gpu_for_test};

    #[test]
    fn results_are_stored_and_reused() {
        let open = || gpu_for_test(OpenOptions::default());
        let (Some(gpu), Some(next)) = (open(), open()) else { return };
        let workload = Workload {
            matrices: vec![(WeightFormat::F16, 64)],
            attention: Vec::new(),
            kv: KvDtype::F16,
            activation: model_format::decoder_config::Activation::Silu,
            norm_heads: false,
            soft_cap: false,
            variants: Vec::new(),
            most_rows: 0,
        };
        let folder = tempfile::tempdir().unwrap();
        let cache = &*CacheFolder::at(folder.path());
        let checked = crate::block_on(ensure(&gpu, &workload, Some(cache))).unwrap();
        assert!(checked.cases > 10 && checked.seconds > 0.0, "{checked:?}");
        assert_eq!(gpu.switched_off(), []);
        let mut known = read_json(cache, FILE);
        assert_eq!(known.len(), 1);
        // Pretend that two kernels were wrong: the next load disables them without running a case.
        let key = known.keys().next().unwrap().clone();
        known.insert(key, json!([{"kernel": "gemv_add", "flag": null}, {"kernel": "argmax", "flag": "SUBGROUPS"}]));
        assert!(cache.write(FILE, Value::Object(known).to_string().as_bytes()));
        assert_eq!(crate::block_on(ensure(&next, &workload, Some(cache))).unwrap().cases, 0);
        let named: Vec<String> = next.switched_off().iter().map(Switch::to_string).collect();
        assert_eq!(named, ["gemv_add", "argmax with subgroups"]);
        // A damaged file counts as empty.
        for broken in ["", "[]", "{\"x\": 3}"] {
            std::fs::write(folder.path().join(FILE), broken).unwrap();
            crate::block_on(ensure(&gpu, &workload, Some(cache))).unwrap();
            assert!(!read_json(cache, FILE).is_empty());
        }
    }
}
