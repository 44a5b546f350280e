//! The kernels of a model are checked when it is loaded onto a GPU; what came out is kept, so that it is done once for a
//! device, a driver and a version of the kernels. `webgpu_kernels::selftest` does the work.

use std::path::Path;

use serde_json::{Value, json};
use webgpu_kernels::{
    Gpu,
    selftest::{self, Switch, Workload},
};

use crate::{
    Result,
    kept::{read_json, write},
};

/// Most results that are kept.
const MOST_KEPT: usize = 64;
const FILE: &str = "selftest.json";

/// Switches off what is wrong, as was found out before or is found out now. `folder`: where results are kept.
pub(crate) async fn ensure(gpu: &Gpu, workload: &Workload, folder: Option<&Path>) -> Result<()> {
    let key = format!("{:016x}", selftest::key(gpu, workload));
    let mut kept = folder.map(|folder| read_json(folder, FILE)).unwrap_or_default();
    if let Some(switches) = kept.get(&key).and_then(switches) {
        let already = gpu.switched_off();
        switches.into_iter().filter(|switch| !already.contains(switch)).for_each(|switch| gpu.switch_off(switch));
        return Ok(());
    }
    let switches = selftest::run(gpu, workload).await?;
    if let Some(folder) = folder {
        if kept.len() >= MOST_KEPT {
            kept.clear();
        }
        let entry = switches.iter().map(|Switch { kernel, flag }| json!({"kernel": kernel, "flag": flag}));
        kept.insert(key, Value::Array(entry.collect()));
        // What cannot be kept is found out again next time.
        write(folder, FILE, Value::Object(kept).to_string().as_bytes());
    }
    Ok(())
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
    use webgpu_kernels::{
        KvDtype, WeightFormat,
        gpu::{OpenOptions, Selection},
    };

    use super::*;

    #[test]
    fn results_are_kept_and_taken_up() {
        let open = || match crate::block_on(Gpu::open(&Selection::Auto, OpenOptions::default())) {
            Ok(gpu) => Some(gpu),
            Err(error) => {
                assert!(std::env::var_os("REQUIRE_GPU").is_none(), "no GPU: {error}");
                eprintln!("skipped: {error}");
                None
            }
        };
        let (Some(gpu), Some(next)) = (open(), open()) else { return };
        let workload = Workload {
            matrices: vec![(WeightFormat::F16, 64)],
            attention: Vec::new(),
            kv: KvDtype::F16,
            activation: model_format::decoder_config::Activation::Silu,
            norm_heads: false,
            soft_cap: false,
        };
        let folder = tempfile::tempdir().unwrap();
        crate::block_on(ensure(&gpu, &workload, Some(folder.path()))).unwrap();
        assert_eq!(gpu.switched_off(), []);
        let mut kept = read_json(folder.path(), FILE);
        assert_eq!(kept.len(), 1);
        // As if a kernel had been wrong: the next start knows it without a test.
        let key = kept.keys().next().unwrap().clone();
        kept.insert(key, json!([{"kernel": "gemv_add", "flag": null}, {"kernel": "argmax", "flag": "SUBGROUPS"}]));
        assert!(write(folder.path(), FILE, Value::Object(kept).to_string().as_bytes()));
        crate::block_on(ensure(&next, &workload, Some(folder.path()))).unwrap();
        let named: Vec<String> = next.switched_off().iter().map(Switch::to_string).collect();
        assert_eq!(named, ["gemv_add", "argmax with subgroups"]);
        // A file that is not ours is as none.
        for broken in ["", "[]", "{\"x\": 3}"] {
            std::fs::write(folder.path().join(FILE), broken).unwrap();
            crate::block_on(ensure(&gpu, &workload, Some(folder.path()))).unwrap();
            assert!(!read_json(folder.path(), FILE).is_empty());
        }
    }
}
