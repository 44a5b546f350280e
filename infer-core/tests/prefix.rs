//! A model that needs BOS (testdata/sink) continues a text like its forward pass in f64 with BOS.

mod common;

use common::Golden;
use infer_core::{Device, Engine, KvDtype, LoadOptions, OpenOptions, SamplingParams, block_on};
use model_format::SafetensorsCheckpoint;
use serde_json::Value;

fn greedy(engine: &mut Engine, text: &str, tokens: usize) -> Vec<u32> {
    let params = SamplingParams { max_tokens: Some(tokens), ..SamplingParams::greedy() };
    let mut answer = engine.complete(text, params).unwrap();
    let mut found = Vec::new();
    while let Some(chunk) = block_on(answer.next()).unwrap() {
        found.extend(chunk.tokens);
    }
    found
}

#[test]
fn completions_start_with_the_prefix_token() {
    let golden = Golden::open("sink");
    let expected: Value = serde_json::from_slice(&std::fs::read(golden.folder("expected.json")).unwrap()).unwrap();
    let ids = |name: &str| -> Vec<u32> { serde_json::from_value(expected[name]["greedy"].clone()).unwrap() };
    assert_ne!(ids("bos"), ids("none"));
    let checkpoint = SafetensorsCheckpoint::open(&golden.folder("")).unwrap();
    let gpu = common::gpu(OpenOptions::default()).map(|gpu| Device::Gpu(gpu, KvDtype::F32));
    for device in [Some(Device::Cpu(Default::default())), gpu].into_iter().flatten() {
        let options = LoadOptions { context: Some(64), ..Default::default() };
        let mut engine = block_on(Engine::load_checkpoint(&checkpoint, device, &options, &mut ())).unwrap();
        let prompt = expected["prompt"].as_str().unwrap();
        assert_eq!(greedy(&mut engine, prompt, 16), ids("bos"));
        // A text that starts with BOS does not get a second one.
        engine.reset();
        assert_eq!(greedy(&mut engine, &format!("<|begin_of_text|>{prompt}"), 16), ids("bos"));
    }
}
