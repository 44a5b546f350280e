//! Every format of `weight-convert` gives the same logits on the CPU and on GPUs of every profile, also for long texts.

#[path = "../../infer-core/tests/common/mod.rs"]
mod common;

use std::{fs, path::Path, thread};

use common::{nmse, profiles};
use infer_core::{Device, Gpu, KvDtype, LoadOptions, LoadedModel, block_on};
use model_format::{DirFiles, QuantFormat, SafetensorsCheckpoint, quant::QUANT_FORMATS};
use serde_json::Value;
use tempfile::TempDir;
use weight_convert::{WeightOptions, convert_weight};

/// A tiny checkpoint with at most `layers` layers, converted to `format`.
fn converted(arch: &str, format: &'static QuantFormat, layers: u64) -> TempDir {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/arch").join(arch);
    let json = |file: &str| -> Value { serde_json::from_slice(&fs::read(source.join(file)).unwrap()).unwrap() };
    let few = |config: &mut Value| {
        if let Some(all) = config["num_hidden_layers"].as_u64() {
            config["num_hidden_layers"] = all.min(layers).into();
        }
    };
    let (folder, cut) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut config = json("hf/config.json");
    few(&mut config);
    fs::write(cut.path().join("config.json"), config.to_string()).unwrap();
    fs::copy(source.join("hf/model.safetensors"), cut.path().join("model.safetensors")).unwrap();
    let checkpoint = SafetensorsCheckpoint::open(cut.path()).unwrap();
    convert_weight(&checkpoint, format, &WeightOptions::default(), folder.path(), &mut ()).unwrap();
    let mut config = json("q4f16_1/mlc-chat-config.json");
    config["quantization"] = format.name.into();
    few(&mut config["model_config"]);
    fs::write(folder.path().join("mlc-chat-config.json"), config.to_string()).unwrap();
    folder
}

/// The logits after the last `rows` tokens.
fn logits(folder: &Path, device: Device, text: &[u32], rows: usize) -> Vec<f32> {
    let options = LoadOptions { context: Some(text.len()), ..Default::default() };
    let mut model = block_on(LoadedModel::load_mlc(&DirFiles::new(folder), device, &options, &mut ())).unwrap();
    let vocab = model.config().vocab_size;
    let mut all: Vec<f32> = Vec::new();
    let take = |logits: &[f32]| -> infer_core::Result<()> {
        all.extend(logits);
        let surplus = all.len().saturating_sub(rows * vocab);
        all.drain(..surplus);
        Ok(())
    };
    block_on(model.text_logits(text, take)).unwrap();
    all
}

fn text(len: u32) -> Vec<u32> {
    (0..len).map(|i| (i * 7919 + 13) % 512).collect()
}

#[test]
fn every_format_equals_the_cpu() {
    let profiles = profiles();
    for arch in ["llama", "gemma3"] {
        for format in QUANT_FORMATS {
            let folder = converted(arch, format, u64::MAX);
            let text = text(60);
            let expected = logits(folder.path(), Device::Cpu(Default::default()), &text, usize::MAX / 512);
            let check = |profile: &str, gpu: &Gpu| {
                // The cache is independent of the format, so one format checks its types.
                let caches = [(KvDtype::F32, 1e-6), (KvDtype::F16, 1e-5), (KvDtype::Q8, 1e-3)];
                for (kv, limit) in caches.into_iter().take(if format.name == "q4f16_1" { 3 } else { 1 }) {
                    let found = logits(folder.path(), Device::Gpu(gpu.clone(), kv), &text, usize::MAX / 512);
                    let error = nmse(&found, &expected);
                    assert!(error <= limit, "{arch}, {}, {profile}, {kv:?}: nmse {error:e}", format.name);
                }
            };
            thread::scope(|scope| {
                for (profile, gpu) in &profiles {
                    scope.spawn(|| check(profile, gpu));
                }
            });
        }
    }
}

#[test]
fn eight_thousand_tokens_equal_the_cpu() {
    let format = QuantFormat::by_name("q4f16_1").unwrap();
    // One layer shows all errors that depend on the context length.
    let (folder, text) = (converted("llama", format, 1), text(8192));
    let profiles = profiles();
    if profiles.is_empty() {
        return;
    }
    let run = |device| logits(folder.path(), device, &text, 100);
    // Each device uses at most one processor.
    thread::scope(|scope| {
        let reference = scope.spawn(|| run(Device::Cpu(Default::default())));
        let begin = |(profile, gpu)| (profile, scope.spawn(move || run(Device::Gpu(gpu, KvDtype::F32))));
        let running: Vec<_> = profiles.into_iter().map(begin).collect();
        let expected = reference.join().unwrap();
        for (profile, found) in running {
            let error = nmse(&found.join().unwrap(), &expected);
            assert!(error <= 1e-6, "{profile}: nmse {error:e}");
        }
    });
}
