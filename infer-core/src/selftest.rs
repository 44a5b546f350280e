//! The kernels of a model are checked when it is loaded onto a GPU; what came out is kept, so that it is done once for a
//! device, a driver and a version of the kernels. `webgpu_kernels::selftest` does the work.

use model_format::DecoderConfig;
use serde_json::{Value, json};
use web_time::Instant;
use webgpu_kernels::{
    Gpu,
    gemv_chain::{self, ChainShape, EndShape, Heads},
    selftest::{self, Line, Switch, Workload},
};

use crate::{
    Result,
    kept::{Kept, read_json},
};

/// Most results that are kept.
const MOST_KEPT: usize = 64;
const FILE: &str = "selftest.json";

/// What the check of a model's kernels took.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Checked {
    /// Cases that were run; none where it was known before how they come out.
    pub cases: usize,
    /// Seconds from the first to the last, with what had to be compiled for them.
    pub seconds: f64,
}

/// Switches off what is wrong, as was found out before or is found out now.
pub(crate) async fn ensure(gpu: &Gpu, workload: &Workload, kept: Option<&dyn Kept>) -> Result<Checked> {
    let start = Instant::now();
    gpu.prepared().await;
    // With chains switched off they are not checked.
    let chains = if gemv_chain::is_off(gpu) { ", no chains" } else { "" };
    let key = format!("{:016x}{chains}", selftest::key(gpu, workload));
    let before = gpu.switched_off();
    let mut known = kept.map(|kept| read_json(kept, FILE)).unwrap_or_default();
    if let Some(switches) = known.get(&key).and_then(switches) {
        let already = gpu.switched_off();
        switches.into_iter().filter(|switch| !already.contains(switch)).for_each(|switch| gpu.switch_off(switch));
        return Ok(Checked { cases: 0, seconds: start.elapsed().as_secs_f64() });
    }
    let (mut switches, cases) = selftest::run(gpu, workload).await?;
    switches.retain(|switch| !before.contains(switch));
    if let Some(kept) = kept {
        if known.len() >= MOST_KEPT {
            known.clear();
        }
        let entry = switches.iter().map(|Switch { kernel, flag }| json!({"kernel": kernel, "flag": flag}));
        known.insert(key, Value::Array(entry.collect()));
        // What cannot be kept is found out again next time.
        kept.write(FILE, Value::Object(known).to_string().as_bytes());
    }
    Ok(Checked { cases, seconds: start.elapsed().as_secs_f64() })
}

/// Checks what is made for a model's shape alone, at its full size: chains against the separate kernels of the same device. `done` is
/// told how many of how many cases are done. Errors: the device's, such as out of memory.
pub async fn check_full(gpu: &Gpu, config: &DecoderConfig, done: impl FnMut(usize, usize)) -> Result<Vec<Line>> {
    let (heads, kv_heads, head_dim) = (config.num_attention_heads, config.num_key_value_heads, config.head_dim);
    let shape = ChainShape {
        hidden: config.hidden_size,
        end: Some(EndShape { attended: heads * head_dim, inner: config.intermediate_size }),
        heads: Some(Heads { heads, kv_heads, head_dim }),
    };
    Ok(gemv_chain::check_full(gpu, &shape, done).await?)
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
    use crate::device::gpu_for_test;

    #[test]
    fn results_are_kept_and_taken_up() {
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
        let kept = &*crate::KeptFolder::at(folder.path());
        let checked = crate::block_on(ensure(&gpu, &workload, Some(kept))).unwrap();
        assert!(checked.cases > 10 && checked.seconds > 0.0, "{checked:?}");
        assert_eq!(gpu.switched_off(), []);
        let mut known = read_json(kept, FILE);
        assert_eq!(known.len(), 1);
        // As if a kernel had been wrong: the next start knows it without a test.
        let key = known.keys().next().unwrap().clone();
        known.insert(key, json!([{"kernel": "gemv_add", "flag": null}, {"kernel": "argmax", "flag": "SUBGROUPS"}]));
        assert!(kept.write(FILE, Value::Object(known).to_string().as_bytes()));
        assert_eq!(crate::block_on(ensure(&next, &workload, Some(kept))).unwrap().cases, 0);
        let named: Vec<String> = next.switched_off().iter().map(Switch::to_string).collect();
        assert_eq!(named, ["gemv_add", "argmax with subgroups"]);
        // A file that is not ours is as none.
        for broken in ["", "[]", "{\"x\": 3}"] {
            std::fs::write(folder.path().join(FILE), broken).unwrap();
            crate::block_on(ensure(&gpu, &workload, Some(kept))).unwrap();
            assert!(!read_json(kept, FILE).is_empty());
        }
    }
}
