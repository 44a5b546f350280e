//! What a device has no operations for is refused, with the part named, before a weight is read.

mod common;

use common::Golden;
use infer_core::{
    Error,
    model::check_runnable,
    ops::{Ops, candle::CandleOps, gpu::GpuOps},
};
use model_format::{Checkpoint, DecoderConfig, SafetensorsCheckpoint};

fn check<O: Ops>(arch: &str, change: impl Fn(&str) -> String) -> Result<(), Error> {
    let checkpoint = SafetensorsCheckpoint::open(&Golden::open(&format!("arch/{arch}")).folder("hf")).unwrap();
    check_runnable::<O>(&DecoderConfig::from_hf(&change(checkpoint.config_json())).unwrap())
}

#[test]
fn the_cpu_runs_every_architecture() {
    for arch in ["llama", "mistral", "qwen2", "qwen3", "phi3", "phi3-longrope", "gemma2", "gemma3"] {
        check::<CandleOps>(arch, str::to_owned).unwrap_or_else(|error| panic!("{arch}: {error}"));
    }
}

#[test]
fn what_the_gpu_cannot_run_is_refused_with_its_part() {
    let refused = |arch: &str, part: &str| {
        let error = check::<GpuOps>(arch, str::to_owned).expect_err(arch);
        assert!(matches!(error, Error::NotRunnable { .. }), "{arch}: {error}");
        assert!(error.to_string().contains(part) && error.hint().is_some(), "{arch}: {error}");
    };
    refused("mistral", "a sliding window");
    refused("qwen2", "a bias in its attention");
    refused("qwen3", "norms of its queries and keys");
    refused("gemma2", "another activation than SiLU");
    refused("gemma3", "norms of its queries and keys");
    for arch in ["llama", "phi3", "phi3-longrope"] {
        check::<GpuOps>(arch, str::to_owned).unwrap_or_else(|error| panic!("{arch}: {error}"));
    }
    // Mistral's later versions have no window.
    let without = |json: &str| json.replace("\"sliding_window\": 16", "\"sliding_window\": null");
    assert!(check::<GpuOps>("mistral", without).is_ok());
}
