//! The demo model compared with transformers (testdata/smollm2, see testdata/README.md).
//!
//! Needs the demo model in the cache; `cargo xtask test` downloads it first. Without it, the tests are skipped with a message, or fail
//! with `REQUIRE_DEMO_MODEL=1`.

#[path = "../../infer-core/tests/common/mod.rs"]
mod common;

use std::{path::Path, sync::OnceLock};

use calib_data::perplexity::{SHORT_TEXT, perplexity};
use infer_core::{
    Decoder, Device, DeviceType, Engine, KvDtype, KvPool, LoadOptions, LoadedModel, Message, OpenOptions,
    SamplingParams, Tokenizer, block_on,
    model::{Sequence, load_checkpoint},
    ops::{Ops, candle::CandleOps, gpu::GpuOps},
};
use model_format::{Checkpoint, DecoderConfig, DirFiles, QuantFormat};
use model_hub::HubConfig;
use safetensors::SafeTensors;
use serde_json::Value;
use weight_convert::{ConfigOptions, ConvertOptions, convert};

/// The demo model's GGUF file from the cache, opened once.
fn demo_model() -> Option<&'static dyn Checkpoint> {
    static MODEL: OnceLock<Option<Box<dyn Checkpoint>>> = OnceLock::new();
    let model = MODEL.get_or_init(|| {
        let hub = HubConfig::from_vars(|name| std::env::var(name).ok()).unwrap();
        let Some(path) = model_hub::demo::cached_gguf(&hub) else {
            assert!(std::env::var_os("REQUIRE_DEMO_MODEL").is_none(), "the demo model's GGUF file is not in the cache");
            eprintln!("skipped: the demo model's GGUF file is not in the cache; `cargo xtask test` downloads it");
            return None;
        };
        Some(model_hub::open(path.to_str().unwrap(), &hub, &mut ()).unwrap().into_checkpoint().unwrap())
    });
    model.as_deref()
}

fn golden(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/smollm2").join(name)).unwrap()
}

fn words(file: &SafeTensors<'_>, name: &str) -> Vec<[u8; 4]> {
    file.tensor(name).unwrap().data().chunks_exact(4).map(|b| [b[0], b[1], b[2], b[3]]).collect()
}

fn f32s(file: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    words(file, name).into_iter().map(f32::from_le_bytes).collect()
}

fn ids(file: &SafeTensors<'_>, name: &str) -> Vec<u32> {
    words(file, name).into_iter().map(u32::from_le_bytes).collect()
}

/// The decoder and the logits of every position of `ids`.
fn load<O: Ops>(ops: &mut O, checkpoint: &dyn Checkpoint) -> Decoder<O> {
    let config = DecoderConfig::from_hf(checkpoint.config_json()).unwrap();
    let parts = load_checkpoint(ops, &config, checkpoint, None, &mut ()).unwrap();
    Decoder::new(ops, &config, parts, 128).unwrap()
}

fn logits<O: Ops>(ops: &mut O, decoder: &Decoder<O>, ids: &[u32]) -> Vec<f32> {
    let (mut pool, mut cache) = KvPool::with_cache(ops, decoder.config(), ids.len()).unwrap();
    let hidden = decoder.hidden(ops, &mut pool, &mut [Sequence { tokens: ids, cache: &mut cache }]);
    let logits = decoder.head(ops, &hidden);
    block_on(ops.read(&logits)).unwrap()
}

#[test]
fn cpu_logits_equal_transformers() {
    let Some(checkpoint) = demo_model() else { return };
    let mut ops = CandleOps::default();
    let decoder = load(&mut ops, checkpoint);
    let vocab = decoder.config().vocab_size;
    let bytes = golden("logits_f32.safetensors");
    let file = SafeTensors::deserialize(&bytes).unwrap();
    for prompt in ["p0", "p1", "p2"] {
        let ids_in = ids(&file, &format!("{prompt}.ids"));
        let found = logits(&mut ops, &decoder, &ids_in);
        let close = |found: f32, expected: f32| {
            assert!((found - expected).abs() <= 1e-3, "{prompt}: found {found}, expected {expected}");
        };
        for (&found, expected) in found[found.len() - vocab..].iter().zip(f32s(&file, &format!("{prompt}.last_logits")))
        {
            close(found, expected);
        }
        let top_ids = ids(&file, &format!("{prompt}.top20_ids"));
        let top_values = f32s(&file, &format!("{prompt}.top20_values"));
        let rows = found.chunks_exact(vocab).zip(top_ids.chunks_exact(20).zip(top_values.chunks_exact(20)));
        for (row, (ids, values)) in rows {
            ids.iter().zip(values).for_each(|(&id, &expected)| close(row[id as usize], expected));
        }
    }
}

/// Greedy answers equal the recorded ones up to the first step whose two best logits differ by less than 0.05.
fn check_chats(device: Device, chats: usize) {
    let Some(checkpoint) = demo_model() else { return };
    let engine = block_on(Engine::load_checkpoint(checkpoint, device, &LoadOptions::default(), &mut ())).unwrap();
    let golden: Value = serde_json::from_slice(&golden("logits.json")).unwrap();
    let ids = |value: &Value| -> Vec<u32> {
        value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
    };
    for chat in golden["chats"].as_array().unwrap().iter().take(chats) {
        let messages = [Message::user(chat["user"].as_str().unwrap())];
        assert_eq!(engine.chat_tokens(&messages).unwrap(), ids(&chat["prompt_ids"]));
        let expected = ids(&chat["greedy_ids"]);
        let gaps = chat["top1_top2_gap"].as_array().unwrap();
        let sure = gaps.iter().take_while(|gap| gap.as_f64().unwrap() >= 0.05).count().min(expected.len());
        let params = SamplingParams { max_tokens: Some(64), ..SamplingParams::greedy() };
        let mut answer = engine.chat(&messages, params).unwrap();
        while block_on(answer.next()).unwrap().is_some() {}
        let found = &answer.tokens()[..sure.min(answer.tokens().len())];
        assert_eq!(found, &expected[..sure], "{}", chat["user"]);
    }
}

#[test]
fn cpu_answers_equal_transformers() {
    check_chats(Device::Cpu(Default::default()), usize::MAX);
}

#[test]
fn gpu_logits_are_near_the_cpus() {
    let (Some(checkpoint), Some(gpu)) = (demo_model(), common::gpu(OpenOptions::default())) else { return };
    let mut cpu = CandleOps::default();
    let reference = load(&mut cpu, checkpoint);
    let bytes = golden("logits_f32.safetensors");
    let file = SafeTensors::deserialize(&bytes).unwrap();
    for (kv, limit) in [(KvDtype::F32, 1e-6), (KvDtype::F16, 1e-5), (KvDtype::Q8, 1e-3)] {
        let mut ops = GpuOps::new(gpu.clone(), kv);
        let decoder = load(&mut ops, checkpoint);
        for prompt in ["p0.ids", "p1.ids", "p2.ids"] {
            let ids = ids(&file, prompt);
            let expected = logits(&mut cpu, &reference, &ids);
            let found = logits(&mut ops, &decoder, &ids);
            let error: f64 = found.iter().zip(&expected).map(|(f, e)| f64::from(f - e).powi(2)).sum();
            let nmse = error / expected.iter().map(|&e| f64::from(e).powi(2)).sum::<f64>();
            eprintln!("{}, cache in {kv:?}, {prompt}: nmse {nmse:.2e}", gpu.summary().name);
            assert!(nmse <= limit, "cache in {kv:?}, {prompt}: nmse {nmse}");
        }
    }
}

#[test]
fn gpu_answers_equal_transformers() {
    let Some(gpu) = common::gpu(OpenOptions::default()) else { return };
    // A software device is slow, so it answers only the first question.
    let chats = if gpu.summary().device_type == DeviceType::Cpu { 1 } else { usize::MAX };
    check_chats(Device::Gpu(gpu, KvDtype::F32), chats);
}

/// Perplexity of the short text of `calib-data` over windows of 256 tokens, in f16 and in q4f16_1 (rounded to nearest), equals
/// transformers' within 0.05. Rounding to nearest raises it by 23.
fn check_perplexity(device: impl Fn() -> Device) {
    let Some(checkpoint) = demo_model() else { return };
    let golden: Value = serde_json::from_slice(&golden("perplexity.json")).unwrap();
    let ids: Vec<u32> = serde_json::from_value(golden["ids"].clone()).unwrap();
    let tokenizer = Tokenizer::from_files(&checkpoint.companion_files().unwrap(), &checkpoint.location()).unwrap();
    assert_eq!(tokenizer.encode(SHORT_TEXT).unwrap(), ids);
    let seq_len = golden["seq_len"].as_u64().unwrap() as usize;
    let windows: Vec<&[u32]> = ids.chunks_exact(seq_len).collect();
    assert_eq!(golden["windows"], windows.len());

    let mlc = tempfile::tempdir().unwrap();
    let format = QuantFormat::by_name("q4f16_1").unwrap();
    let config = ConfigOptions { conv_template: Some("chatml".into()), ..ConfigOptions::default() };
    let options = ConvertOptions { config, ..ConvertOptions::default() };
    convert(checkpoint, format, &options, mlc.path(), &mut ()).unwrap();
    let load = LoadOptions { context: Some(seq_len), ..LoadOptions::default() };
    let models = [
        ("float", block_on(LoadedModel::load_checkpoint(checkpoint, device(), &load, &mut ())).unwrap()),
        ("q4f16_1", block_on(LoadedModel::load_mlc(&DirFiles::new(mlc.path()), device(), &load, &mut ())).unwrap()),
    ];
    for (name, mut model) in models {
        let mut losses = Vec::new();
        for (window, expected) in windows.iter().zip(golden["losses"][name].as_array().unwrap()) {
            let of_tokens = block_on(model.token_losses(window)).unwrap();
            assert_eq!(of_tokens.len(), seq_len - 1);
            let loss = of_tokens.iter().map(|&loss| f64::from(loss)).sum::<f64>() / of_tokens.len() as f64;
            eprintln!("{name}: loss {loss:.5}, transformers {expected}");
            losses.push(loss);
        }
        let (found, expected) = (perplexity(&losses), golden["perplexity"][name].as_f64().unwrap());
        assert!((found - expected).abs() <= 0.05, "{name}: perplexity {found}, transformers {expected}");
    }
}

#[test]
fn cpu_perplexity_equals_transformers() {
    check_perplexity(|| Device::Cpu(Default::default()));
}

#[test]
fn gpu_perplexity_equals_transformers() {
    // In f32, like the reference. A software device takes minutes.
    let options = OpenOptions { cooperative_matrix: false, ..OpenOptions::default() };
    let Some(gpu) = common::gpu(options) else { return };
    if gpu.summary().device_type == DeviceType::Cpu {
        eprintln!("skipped: {} is a software device", gpu.summary().name);
        return;
    }
    check_perplexity(|| Device::Gpu(gpu.clone(), KvDtype::F32));
}
