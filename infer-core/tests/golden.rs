//! Compares the decoder with recorded logits and greedy text of transformers (see testdata/README.md), on the CPU and on the
//! GPU.

mod common;

use common::{Golden, nmse, profiles};
use infer_core::{
    Decoder, KvPool,
    model::{
        KvWindows, Layer, Parts, Sequence, Session,
        decoder::{RopeTables, embed},
        load_checkpoint, load_mlc,
    },
    ops::{Ops, candle::CandleOps},
};
use model_format::{ChatConfig, DecoderConfig, DirFiles, ModelFiles, QuantFormat, Role, SafetensorsCheckpoint};

/// The logits at every position.
async fn logits<O: Ops>(ops: &mut O, decoder: &Decoder<O>, ids: &[u32]) -> Vec<f32> {
    let (mut pool, mut cache) = KvPool::with_cache(ops, decoder.config(), ids.len()).unwrap();
    let hidden = decoder.hidden(ops, &mut pool, &mut [Sequence { tokens: ids, cache: &mut cache }]);
    let logits = decoder.head(ops, &hidden);
    ops.read(&logits).await.unwrap()
}

/// `steps` tokens of greedy decoding, with a KV cache.
async fn greedy<O: Ops>(ops: &mut O, decoder: &Decoder<O>, prompt: &[u32], steps: usize) -> Vec<u32> {
    let (mut pool, mut cache) = KvPool::with_cache(ops, decoder.config(), prompt.len() + steps).unwrap();
    let mut next = prompt.to_vec();
    let mut text = Vec::new();
    for _ in 0..steps {
        let logits = decoder.forward(ops, &mut pool, &mut [Sequence { tokens: &next, cache: &mut cache }]);
        let logits = ops.read(&logits).await.unwrap();
        text.push(common::largest(&logits));
        next = vec![common::largest(&logits)];
    }
    text
}

/// The architectures with golden data.
const ARCHITECTURES: [&str; 8] = ["llama", "phi3", "qwen2", "qwen3", "mistral", "phi3-longrope", "gemma2", "gemma3"];

fn open(arch: &str) -> Golden {
    Golden::open(&format!("arch/{arch}"))
}

async fn float_decoder<O: Ops>(ops: &mut O, golden: &Golden) -> Decoder<O> {
    let checkpoint = SafetensorsCheckpoint::open(&golden.folder("hf")).unwrap();
    let config = DecoderConfig::from_hf(model_format::Checkpoint::config_json(&checkpoint)).unwrap();
    let parts = load_checkpoint(ops, &config, &checkpoint, None, &mut ()).unwrap();
    Decoder::new(ops, &config, parts, 128).unwrap()
}

async fn mlc_decoder<O: Ops>(ops: &mut O, golden: &Golden) -> Decoder<O> {
    let (config, parts) = mlc_parts(ops, golden).await;
    Decoder::new(ops, &config, parts, 128).unwrap()
}

async fn mlc_parts<O: Ops>(ops: &mut O, golden: &Golden) -> (DecoderConfig, Parts<O>) {
    let files = DirFiles::new(golden.folder("q4f16_1"));
    let json = String::from_utf8(files.read("mlc-chat-config.json").await.unwrap()).unwrap();
    let config = DecoderConfig::from_mlc(&ChatConfig::parse(&json).unwrap()).unwrap();
    let format = QuantFormat::by_name("q4f16_1").unwrap();
    let parts = load_mlc(ops, &config, format, &files, &mut ()).await.unwrap();
    (config, parts)
}

/// Logits of the float model equal transformers' within `max_abs`. So does the greedy text, up to the first step whose margin is
/// too small for that error.
async fn check_float<O: Ops>(ops: &mut O, arch: &str, max_abs: f32) {
    let golden = open(arch);
    let decoder = float_decoder(ops, &golden).await;
    let file = golden.tensors("logits.safetensors");
    for (prompt, text) in golden.json("info.json")["greedy"].as_array().unwrap().iter().enumerate() {
        let ids = file.ids(&format!("ids_{prompt}"));
        let expected = file.f32(&format!("logits_{prompt}"));
        let found = logits(ops, &decoder, &ids).await;
        let difference = common::max_abs_difference(&found, &expected);
        println!("{arch}: logits_{prompt} differ by {difference:e}");
        assert!(difference <= max_abs, "{arch}: logits_{prompt} differ by {difference}");

        let expected: Vec<u32> = common::ids(&text["ids"]);
        let margins = common::margins(&text["margin"]);
        let sure = margins.iter().take_while(|&&margin| margin > 4.0 * max_abs).count();
        assert!(sure > 0, "{arch}: the first margin of the golden data is too small");
        let found = greedy(ops, &decoder, &ids, sure).await;
        assert_eq!(found, expected[..sure], "{arch}: greedy text of prompt {prompt}");
    }
}

/// A q4f16_1 folder of MLC's converter gives the logits of its dequantized weights within `max_abs`, and the greedy text where the
/// margin is large enough. The golden data rounds each dequantized weight to f16, which changes logits of size 13 by up to 0.03.
async fn check_q4f16_1<O: Ops>(ops: &mut O, arch: &str, max_abs: f32) {
    let golden = open(arch);
    let prompts = golden.tensors("logits.safetensors");
    let decoder = mlc_decoder(ops, &golden).await;
    let recorded = golden.tensors("logits_q4f16_1.safetensors");
    for (ids, recorded_logits) in [("ids_0", "logits_0"), ("ids_1", "logits_1_last")] {
        let expected = recorded.f32(recorded_logits);
        let found = logits(ops, &decoder, &prompts.ids(ids)).await;
        let difference = common::max_abs_difference(&found[found.len() - expected.len()..], &expected);
        println!("{arch}: q4f16_1 {recorded_logits} differ by {difference:e}");
        assert!(difference <= max_abs, "{arch}: {recorded_logits} differ by {difference}");
    }
    let vocab = decoder.config().vocab_size;
    for text in golden.json("greedy_q4f16_1.json")["greedy"].as_array().unwrap() {
        let prompt = prompts.ids(text["prompt"].as_str().unwrap());
        let (ids, margins) = (common::ids(&text["ids"]), common::margins(&text["margin"]));
        let whole: Vec<u32> = prompt.iter().chain(&ids[..ids.len() - 1]).copied().collect();
        let found = logits(ops, &decoder, &whole).await;
        for (i, logits) in found.chunks_exact(vocab).skip(prompt.len() - 1).enumerate() {
            let is_sure = margins[i] > 2.0 * max_abs;
            assert!(!is_sure || common::largest(logits) == ids[i], "{arch}: q4f16_1 token {i} of the greedy text");
        }
    }
}

/// The residual stream equals transformers' within `max_nmse`: before the first layer, after each layer, after the final norm.
async fn check_states<O: Ops>(ops: &mut O, arch: &str, max_nmse: f64) {
    let golden = open(arch);
    let checkpoint = SafetensorsCheckpoint::open(&golden.folder("hf")).unwrap();
    let config = DecoderConfig::from_hf(model_format::Checkpoint::config_json(&checkpoint)).unwrap();
    let mut parts = load_checkpoint(ops, &config, &checkpoint, None, &mut ()).unwrap();
    let ids = golden.tensors("logits.safetensors").ids("ids_0");
    let states = golden.tensors("states_0.safetensors");
    let check = |found: Vec<f32>, name: &str| {
        let error = nmse(&found, &states.f32(name));
        println!("{arch}: {name}: nmse {error:e}");
        assert!(error <= max_nmse, "{arch}: {name}: nmse {error:e}");
    };
    let tables = RopeTables::new(ops, &config, ids.len()).unwrap();
    let table = tables.table(tables.is_long(ids.len()));
    let window = KvWindows::new(1, ids.len());
    let rows = ops.place_rows(&window.spans(1));
    let mut x = embed(ops, &config, &parts.take_matrix(Role::Embedding), &ids);
    check(ops.read(&x).await.unwrap(), "embed");
    for i in 0..config.num_hidden_layers {
        let layer = Layer::new(&config, &mut parts, i);
        let mut kv = ops.new_kv(window.shape(&config)).unwrap();
        let y = layer.forward(ops, &mut x, table, &mut kv, &rows);
        ops.add_assign(&mut x, &y);
        check(ops.read(&x).await.unwrap(), &format!("layer_{i}"));
    }
    let normed = ops.rms_norm(&x, &parts.take_vector(Role::FinalNorm), config.rms_norm_eps as f32);
    check(ops.read(&normed).await.unwrap(), "final_norm");
}

/// Decoding token by token gives the logits of prefilling the text up to each token.
async fn check_steps<O: Ops>(ops: &mut O, arch: &str) {
    check_steps_of(ops, arch, false, 1e-9).await;
}

/// [`check_steps`] for the float model or for q4f16_1, with an error limit.
async fn check_steps_of<O: Ops>(ops: &mut O, arch: &str, quantized: bool, most: f64) {
    let golden = open(arch);
    let ids = golden.tensors("logits.safetensors").ids("ids_0");
    let decoder = if quantized { mlc_decoder(ops, &golden).await } else { float_decoder(ops, &golden).await };
    let (mut pool, mut cache) = KvPool::with_cache(ops, decoder.config(), ids.len()).unwrap();
    for (i, &token) in ids.iter().enumerate() {
        let whole = logits(ops, &decoder, &ids[..=i]).await;
        let step = decoder.forward(ops, &mut pool, &mut [Sequence { tokens: &[token], cache: &mut cache }]);
        let step = ops.read(&step).await.unwrap();
        let error = nmse(&step, &whole[whole.len() - step.len()..]);
        assert!(error < most, "{arch}: step {i}, nmse {error}");
    }
}

/// A batch of two sequences, a split prefill and a truncated cache give the logits of one sequence prefilled at once.
async fn check_cache<O: Ops>(ops: &mut O, arch: &str) {
    let golden = open(arch);
    let decoder = float_decoder(ops, &golden).await;
    let a = golden.tensors("logits.safetensors").ids("ids_0");
    let b: Vec<u32> = a.iter().rev().copied().collect();
    let end = a.len() - 1;
    let vocab = decoder.config().vocab_size;
    let last = |logits: Vec<f32>| logits[logits.len() - vocab..].to_vec();
    let (alone_a, alone_b) = (last(logits(ops, &decoder, &a).await), last(logits(ops, &decoder, &b).await));

    let (mut pool, mut caches) = KvPool::with_caches(ops, decoder.config(), 2, 64).unwrap();
    let [cache_a, cache_b] = &mut caches[..] else { panic!("two caches") };
    // Run another continuation first, and drop it.
    decoder.forward(ops, &mut pool, &mut [Sequence { tokens: &a[..20], cache: cache_a }]);
    decoder.forward(ops, &mut pool, &mut [Sequence { tokens: &b[..20], cache: cache_a }]);
    cache_a.truncate(20);
    decoder.forward(ops, &mut pool, &mut [Sequence { tokens: &b[..7], cache: cache_b }]);
    assert_eq!(cache_a.common_prefix(&a), 20);
    // Many rows of each sequence, then one row of each.
    decoder.forward(
        ops,
        &mut pool,
        &mut [Sequence { tokens: &a[20..end], cache: cache_a }, Sequence { tokens: &b[7..end], cache: cache_b }],
    );
    let both = decoder.forward(
        ops,
        &mut pool,
        &mut [Sequence { tokens: &a[end..], cache: cache_a }, Sequence { tokens: &b[end..], cache: cache_b }],
    );
    let both = ops.read(&both).await.unwrap();
    for (found, expected, name) in [(&both[..vocab], &alone_a, "a"), (&both[vocab..], &alone_b, "b")] {
        let error = nmse(found, expected);
        assert!(error < 1e-9, "{arch}: sequence {name}: nmse {error}");
    }
}

/// The tests of every device. Each module defines `on_all`, which runs a check on all architectures.
macro_rules! on_all_architectures {
    () => {
        #[test]
        fn float_logits_and_text_equal_transformers() {
            on_all(async |ops, arch| check_float(ops, arch, 1e-3).await);
        }

        #[test]
        fn q4f16_1_logits_and_text_equal_the_dequantized_models() {
            on_all(async |ops, arch| check_q4f16_1(ops, arch, 0.05).await);
        }

        #[test]
        fn states_equal_transformers() {
            on_all(async |ops, arch| check_states(ops, arch, 1e-9).await);
        }

        #[test]
        fn decoding_equals_prefill() {
            on_all(async |ops, arch| check_steps(ops, arch).await);
        }

        #[test]
        fn batches_and_caches_equal_single_sequences() {
            on_all(async |ops, arch| check_cache(ops, arch).await);
        }
    };
}

mod cpu {
    use super::*;

    /// Runs a check on every architecture.
    fn on_all(check: impl AsyncFn(&mut CandleOps, &str)) {
        for arch in ARCHITECTURES {
            infer_core::block_on(check(&mut CandleOps::default(), arch));
        }
    }

    on_all_architectures!();
}

mod gpu {
    use super::*;
    use infer_core::{
        Gpu, KvDtype,
        ops::gpu::{ChainChoice, GpuOps},
    };

    /// Runs a check on every profile and architecture, with f32 caches.
    fn on_all(check: impl AsyncFn(&mut GpuOps, &str)) {
        for (profile, gpu) in profiles() {
            println!("{profile}");
            let mut ops = GpuOps::new(gpu, KvDtype::F32);
            for arch in ARCHITECTURES {
                infer_core::block_on(check(&mut ops, arch));
            }
        }
    }

    /// Compares logits of the GPU with the CPU's, for every number type of the cache.
    fn check_near_cpu<D, M>(cpu: D, gpu: M)
    where
        D: AsyncFn(&mut CandleOps, &Golden) -> Decoder<CandleOps>,
        M: AsyncFn(&mut GpuOps, &Golden) -> Decoder<GpuOps>,
    {
        let profiles = profiles();
        infer_core::block_on(async {
            for arch in ARCHITECTURES {
                let golden = open(arch);
                let ids = golden.tensors("logits.safetensors").ids("ids_0");
                let mut ops = CandleOps::default();
                let decoder = cpu(&mut ops, &golden).await;
                let expected = logits(&mut ops, &decoder, &ids).await;
                for (profile, device) in &profiles {
                    for (kv, limit) in [(KvDtype::F32, 1e-6), (KvDtype::F16, 1e-5), (KvDtype::Q8, 1e-3)] {
                        let mut ops = GpuOps::new(device.clone(), kv);
                        let decoder = gpu(&mut ops, &golden).await;
                        let error = nmse(&logits(&mut ops, &decoder, &ids).await, &expected);
                        // Matrix units multiply in f16.
                        let limit = if device.caps().cooperative_matrix { f64::max(limit, 1e-5) } else { limit };
                        println!("{profile}, {arch}, {kv:?}: nmse {error:e}");
                        assert!(error <= limit, "{profile}, {arch}, {kv:?}: nmse {error}");
                    }
                }
            }
        });
    }

    #[test]
    fn float_logits_are_near_the_cpus() {
        check_near_cpu(float_decoder, float_decoder);
    }

    #[test]
    fn q4f16_1_logits_are_near_the_cpus() {
        check_near_cpu(mlc_decoder, mlc_decoder);
    }

    on_all_architectures!();

    /// Uses a session like a conversation: continues answers, cuts them short, runs other tokens than the chosen ones, fills the
    /// cache.
    async fn conversation(gpu: &Gpu, ahead: usize) -> Vec<u32> {
        const CONTEXT: usize = 48;
        let golden = Golden::open("arch/llama");
        let prompt = golden.tensors("logits.safetensors").ids("ids_0");
        let mut ops = GpuOps::new(gpu.clone(), KvDtype::F32).with_ahead(ahead);
        let (config, parts) = mlc_parts(&mut ops, &golden).await;
        let mut session = Session::new(ops, &config, parts, CONTEXT, 1).unwrap();
        let mut text = vec![session.most_likely(&prompt[..20]).await.unwrap()];
        for step in 0..CONTEXT - 20 {
            let next = if step == 5 { prompt[20] } else { text[text.len() - 1] };
            text.push(session.most_likely(&[next]).await.unwrap());
            assert_eq!(session.cache().len(), 21 + step, "the cache has the requested tokens");
        }
        session.cache_mut().truncate(22);
        assert_eq!(session.cache().tokens()[20..], text[..2]);
        let logits = session.logits(&[text[2]]).await.unwrap();
        text.push(common::largest(&logits));
        text.push(session.most_likely(&prompt[20..25]).await.unwrap());
        text
    }

    /// The division of a text into chunks and submissions does not change a bit.
    #[test]
    fn chunks_do_not_change_the_bits() {
        for (profile, gpu) in profiles() {
            for arch in ARCHITECTURES {
                let golden = open(arch);
                let mut ops = GpuOps::new(gpu.clone(), KvDtype::F16);
                let ids = golden.tensors("logits.safetensors").ids("ids_0");
                let text: Vec<u32> = ids.iter().cycle().take(100).copied().collect();
                let (config, parts) = infer_core::block_on(mlc_parts(&mut ops, &golden));
                let mut session = Session::new(ops, &config, parts, 100, 1).unwrap();
                let mut expected: Option<Vec<u32>> = None;
                for limit in [u64::MAX, 1 << 20, 1] {
                    gpu.limit_work(Some(limit));
                    session.cache_mut().begin_text(text.len());
                    let logits = infer_core::block_on(session.logits(&text)).unwrap();
                    let bits: Vec<u32> = logits.iter().map(|logit| logit.to_bits()).collect();
                    let chunk = session.chunk_len(100, 512);
                    assert_eq!(chunk, if limit == u64::MAX { 100 } else { chunk.min(99) }, "{limit}");
                    assert!(
                        *expected.get_or_insert(bits.clone()) == bits,
                        "{profile}, {arch}, chunks of {chunk} tokens"
                    );
                }
                gpu.limit_work(None);
            }
        }
    }

    #[test]
    fn lookahead_changes_nothing() {
        for (profile, gpu) in profiles() {
            let expected = infer_core::block_on(conversation(&gpu, 0));
            for ahead in [1, 2, 5] {
                assert_eq!(infer_core::block_on(conversation(&gpu, ahead)), expected, "{profile}, {ahead} ahead");
            }
        }
    }

    /// Chains of kernels give the logits of prefill. Devices without chains use separate dispatches.
    #[test]
    fn chained_layers_equal_prefill() {
        // The profile of real GPUs.
        let Some((profile, gpu)) = profiles().into_iter().nth(1) else { return };
        // Few workgroups, so that each processes several ranges of rows.
        let chain = ChainChoice { workgroup: 64, rows: 8, groups: 3, range: 4 };
        for arch in ["llama", "qwen2"] {
            let mut ops = GpuOps::new(gpu.clone(), KvDtype::F32).with_chain(chain);
            infer_core::block_on(check_steps_of(&mut ops, arch, true, 1e-6));
            let chains = gpu.caps().max_bindings > 8 && gpu.caps().subgroups.is_some();
            assert_eq!(ops.has_chained(), chains, "{profile}: {arch}");
        }
    }
}
