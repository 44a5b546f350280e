//! Compares the approximate modes of the CPU backend, integer products and small caches, with its f32 reference.

mod common;

use common::{Golden, nmse};
use infer_core::{
    KvDtype, OpenOptions, block_on,
    model::{Parts, Session, load_checkpoint, load_mlc},
    ops::{
        Choose,
        candle::{CandleOps, CpuOptions, CpuWeights},
        gpu::GpuOps,
    },
};
use model_format::{ChatConfig, Checkpoint, DecoderConfig, DirFiles, QuantFormat, SafetensorsCheckpoint};

/// The architectures with golden data.
const ARCHITECTURES: [&str; 8] = ["llama", "phi3", "qwen2", "qwen3", "mistral", "phi3-longrope", "gemma2", "gemma3"];

/// Logits of a q4f16_1 model: half of a text is prefilled, the rest decoded token by token.
fn logits<O: Choose>(mut ops: O, arch: &str) -> Vec<f32> {
    let files = DirFiles::new(Golden::open(&format!("arch/{arch}")).folder("q4f16_1"));
    let config = DecoderConfig::from_mlc(&block_on(ChatConfig::read(&files)).unwrap()).unwrap();
    let format = QuantFormat::by_name("q4f16_1").unwrap();
    let parts = block_on(load_mlc(&mut ops, &config, format, &files, &mut ())).unwrap();
    logits_of(ops, arch, &config, parts)
}

/// [`logits`] of the float model.
fn float_logits(mut ops: CandleOps, arch: &str) -> Vec<f32> {
    let checkpoint = SafetensorsCheckpoint::open(&Golden::open(&format!("arch/{arch}")).folder("hf")).unwrap();
    let config = DecoderConfig::from_hf(checkpoint.config_json()).unwrap();
    let parts = load_checkpoint(&mut ops, &config, &checkpoint, None, &mut ()).unwrap();
    logits_of(ops, arch, &config, parts)
}

fn logits_of<O: Choose>(ops: O, arch: &str, config: &DecoderConfig, parts: Parts<O>) -> Vec<f32> {
    let ids = Golden::open(&format!("arch/{arch}")).tensors("logits.safetensors").ids("ids_0");
    let mut session = Session::new(ops, config, parts, 128, 1).unwrap();
    let (first, others) = ids.split_at(ids.len() / 2);
    let mut all = block_on(session.logits(first)).unwrap();
    for id in others {
        all.extend(block_on(session.logits(&[*id])).unwrap());
    }
    all
}

fn cpu(weights: CpuWeights, kv: KvDtype) -> CandleOps {
    CandleOps::new(CpuOptions { weights, kv })
}

#[test]
fn integer_products_are_near_the_reference() {
    for arch in ARCHITECTURES {
        let expected = logits(CandleOps::default(), arch);
        let error = nmse(&logits(cpu(CpuWeights::Integer, KvDtype::F32), arch), &expected);
        println!("{arch}: nmse {error:e}");
        // Rounding activations gives a relative squared error of 3e-5 per product (the largest of 32 values is 2.4 standard
        // deviations, a step 1/127 of it). These random models amplify it. No error at all would mean another code path.
        assert!(error > 0.0 && error < 5e-3, "{arch}: nmse {error}");
    }
}

#[test]
fn matrices_rounded_to_8_bits_are_near_the_reference() {
    for arch in ["llama", "gemma2", "phi3"] {
        let error = nmse(&float_logits(CandleOps::rounded(), arch), &float_logits(CandleOps::default(), arch));
        println!("{arch}: nmse {error:e}");
        // The limit as above: weights and activations are rounded alike.
        assert!(error > 0.0 && error < 5e-3, "{arch}: nmse {error}");
    }
}

#[test]
fn small_caches_are_near_the_reference() {
    for arch in ARCHITECTURES {
        let expected = logits(CandleOps::default(), arch);
        for (kv, limit) in [(KvDtype::F16, 1e-5), (KvDtype::Q8, 1e-3)] {
            let error = nmse(&logits(cpu(CpuWeights::Exact, kv), arch), &expected);
            println!("{arch}, {kv:?}: nmse {error:e}");
            assert!(error > 0.0 && error < limit, "{arch}, {kv:?}: nmse {error}");
        }
    }
}

#[test]
fn caches_round_like_those_of_a_gpu() {
    let Some(gpu) = common::gpu(OpenOptions::default()) else { return };
    for arch in ["llama", "qwen3", "gemma2"] {
        let reference = logits(CandleOps::default(), arch);
        let on_gpu = logits(GpuOps::new(gpu.clone(), KvDtype::Q8), arch);
        let (on_cpu, rounding) = (logits(cpu(CpuWeights::Exact, KvDtype::Q8), arch), nmse(&on_gpu, &reference));
        let error = nmse(&on_cpu, &on_gpu);
        println!("{arch}: nmse {error:e} between the caches, {rounding:e} to f32");
        // A key halfway between two codes may be rounded either way.
        assert!(error < rounding / 10.0, "{arch}: {error} between the caches, {rounding} to f32");
    }
}
