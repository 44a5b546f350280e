//! The decoder against logits and greedy text that transformers computed (testdata/README.md says how), on the CPU and,
//! where there is an adapter, on the GPU.

mod common;

use common::{Golden, nmse};
use infer_core::{
    Decoder, KvCache,
    model::{Parts, Sequence, Session, load_checkpoint, load_mlc},
    ops::{Ops, candle::CandleOps},
};
use model_format::{ChatConfig, DecoderConfig, DirFiles, ModelFiles, QuantFormat, SafetensorsCheckpoint};

/// Logits of every position.
async fn logits<O: Ops>(ops: &mut O, decoder: &Decoder<O>, ids: &[u32]) -> Vec<f32> {
    let mut cache = KvCache::new(ops, decoder.config(), ids.len()).unwrap();
    let hidden = decoder.hidden(ops, &mut [Sequence { tokens: ids, cache: &mut cache }]);
    let logits = decoder.head(ops, &hidden);
    ops.read(&logits).await.unwrap()
}

/// The most likely token after each of `steps` steps, with a cache.
async fn greedy<O: Ops>(ops: &mut O, decoder: &Decoder<O>, prompt: &[u32], steps: usize) -> Vec<u32> {
    let mut cache = KvCache::new(ops, decoder.config(), prompt.len() + steps).unwrap();
    let mut next = prompt.to_vec();
    let mut text = Vec::new();
    for _ in 0..steps {
        let logits = decoder.forward(ops, &mut [Sequence { tokens: &next, cache: &mut cache }]);
        let logits = ops.read(&logits).await.unwrap();
        let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
        text.push(best as u32);
        next = vec![best as u32];
    }
    text
}

async fn float_decoder<O: Ops>(ops: &mut O, golden: &Golden) -> Decoder<O> {
    let checkpoint = SafetensorsCheckpoint::open(&golden.folder("hf")).unwrap();
    let config = DecoderConfig::from_hf(model_format::Checkpoint::config_json(&checkpoint)).unwrap();
    let parts = load_checkpoint(ops, &config, &checkpoint, None, &mut ()).unwrap();
    Decoder::new(ops, &config, parts, 128).unwrap()
}

async fn mlc_decoder<O: Ops>(ops: &mut O, golden: &Golden, format: &str) -> Decoder<O> {
    let (config, parts) = mlc_parts(ops, golden, format).await;
    Decoder::new(ops, &config, parts, 128).unwrap()
}

async fn mlc_parts<O: Ops>(ops: &mut O, golden: &Golden, format: &str) -> (DecoderConfig, Parts<O>) {
    let files = DirFiles::new(golden.folder(format));
    let json = String::from_utf8(files.read("mlc-chat-config.json").await.unwrap()).unwrap();
    let config = DecoderConfig::from_mlc(&ChatConfig::parse(&json).unwrap()).unwrap();
    let format = QuantFormat::by_name(format).unwrap();
    let parts = load_mlc(ops, &config, format, &files, &mut ()).await.unwrap();
    (config, parts)
}

/// Float logits equal transformers' within `max_abs`, and so does the greedy text up to the first step whose two best
/// tokens lie closer together than that could move them.
async fn check_float<O: Ops>(ops: &mut O, max_abs: f32) {
    let golden = Golden::open("arch/llama");
    let decoder = float_decoder(ops, &golden).await;
    let file = golden.tensors("logits.safetensors");
    for (prompt, text) in golden.info()["greedy"].as_array().unwrap().iter().enumerate() {
        let ids = file.ids(&format!("ids_{prompt}"));
        let expected = file.f32(&format!("logits_{prompt}"));
        let found = logits(ops, &decoder, &ids).await;
        let difference = common::max_abs_difference(&found, &expected);
        assert!(difference <= max_abs, "logits_{prompt} differ by {difference}");

        let expected: Vec<u32> = common::ids(&text["ids"]);
        let margins: Vec<f64> = text["margin"].as_array().unwrap().iter().map(|m| m.as_f64().unwrap()).collect();
        let sure = margins.iter().take_while(|&&margin| margin > 4.0 * f64::from(max_abs)).count();
        assert!(sure > 0, "the golden's first margin is too small to say anything");
        let found = greedy(ops, &decoder, &ids, sure).await;
        assert_eq!(found, expected[..sure], "greedy text of prompt {prompt}");
    }
}

/// The real converter's q4f16_1 folder gives the logits of its dequantized weights. The golden rounds each weight to
/// f16 after the product, which moves logits of size 13 by up to 0.025 (README-arch.md of the golden data).
async fn check_q4f16_1<O: Ops>(ops: &mut O, max_abs: f32) {
    let golden = Golden::open("arch/llama");
    let decoder = mlc_decoder(ops, &golden, "q4f16_1").await;
    let ids = golden.tensors("logits.safetensors").ids("ids_0");
    let expected = golden.tensors("logits_q4f16_1.safetensors").f32("logits_0");
    let found = logits(ops, &decoder, &ids).await;
    let difference = common::max_abs_difference(&found, &expected);
    assert!(difference <= max_abs, "logits differ by {difference}");
}

/// A batch of sequences, a split prefill and a truncated cache give what one sequence in one piece gives.
async fn check_cache<O: Ops>(ops: &mut O) {
    let golden = Golden::open("arch/llama");
    let decoder = float_decoder(ops, &golden).await;
    let file = golden.tensors("logits.safetensors");
    let (a, b) = (file.ids("ids_0"), file.ids("ids_1"));
    let vocab = decoder.config().vocab_size;
    let last = |logits: Vec<f32>| logits[logits.len() - vocab..].to_vec();
    let (alone_a, alone_b) = (last(logits(ops, &decoder, &a).await), last(logits(ops, &decoder, &b).await));

    let mut caches = [0; 2].map(|_| KvCache::new(ops, decoder.config(), 64).unwrap());
    let [cache_a, cache_b] = &mut caches;
    // Another continuation first, then forgotten.
    decoder.forward(ops, &mut [Sequence { tokens: &a[..20], cache: cache_a }]);
    decoder.forward(ops, &mut [Sequence { tokens: &b[..20], cache: cache_a }]);
    cache_a.truncate(20);
    decoder.forward(ops, &mut [Sequence { tokens: &b[..7], cache: cache_b }]);
    assert_eq!(cache_a.common_prefix(&a), 20);
    let both = decoder.forward(
        ops,
        &mut [Sequence { tokens: &a[20..], cache: cache_a }, Sequence { tokens: &b[7..], cache: cache_b }],
    );
    let both = ops.read(&both).await.unwrap();
    for (found, expected, name) in [(&both[..vocab], &alone_a, "a"), (&both[vocab..], &alone_b, "b")] {
        let error = nmse(found, expected);
        assert!(error < 1e-9, "sequence {name}: nmse {error}");
    }
}

mod cpu {
    use super::*;

    #[test]
    fn float_logits_and_text_equal_transformers() {
        infer_core::block_on(check_float(&mut CandleOps::default(), 1e-3));
    }

    #[test]
    fn q4f16_1_logits_equal_the_dequantized_models() {
        infer_core::block_on(check_q4f16_1(&mut CandleOps::default(), 0.05));
    }

    #[test]
    fn batches_and_caches_change_nothing() {
        infer_core::block_on(check_cache(&mut CandleOps::default()));
    }
}

mod gpu {
    use super::*;
    use infer_core::{Gpu, KvDtype, OpenOptions, ops::gpu::GpuOps};

    /// The machine's first adapter, with what each profile allows. Without one: skipped, with the reason.
    fn profiles() -> Vec<(&'static str, Gpu)> {
        let plain = OpenOptions { f16: false, subgroups: false, default_limits: true };
        let mut open = Vec::new();
        for (name, options) in [("all features", OpenOptions::default()), ("WebGPU's defaults", plain)] {
            match infer_core::block_on(Gpu::open(&Default::default(), options)) {
                Ok(gpu) => open.push((name, gpu)),
                Err(error) => {
                    assert!(std::env::var_os("REQUIRE_GPU").is_none(), "no GPU: {error}");
                    eprintln!("skipped: {error}");
                }
            }
        }
        open
    }

    /// Normalised mean squared error of GPU logits against the CPU's, for both kinds of cache.
    fn check_near_cpu<D, M>(cpu: D, gpu: M)
    where
        D: AsyncFn(&mut CandleOps, &Golden) -> Decoder<CandleOps>,
        M: AsyncFn(&mut GpuOps, &Golden) -> Decoder<GpuOps>,
    {
        let golden = Golden::open("arch/llama");
        let ids = golden.tensors("logits.safetensors").ids("ids_0");
        infer_core::block_on(async {
            let mut ops = CandleOps::default();
            let decoder = cpu(&mut ops, &golden).await;
            let expected = logits(&mut ops, &decoder, &ids).await;
            for (profile, device) in profiles() {
                for (kv, limit) in [(KvDtype::F32, 1e-6), (KvDtype::F16, 1e-5)] {
                    let mut ops = GpuOps::new(device.clone(), kv);
                    let decoder = gpu(&mut ops, &golden).await;
                    let error = nmse(&logits(&mut ops, &decoder, &ids).await, &expected);
                    assert!(error <= limit, "{profile}, {kv:?}: nmse {error}");
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
        check_near_cpu(
            async |ops, golden| mlc_decoder(ops, golden, "q4f16_1").await,
            async |ops, golden| mlc_decoder(ops, golden, "q4f16_1").await,
        );
    }

    #[test]
    fn float_logits_and_text_equal_transformers() {
        for (_, gpu) in profiles() {
            infer_core::block_on(check_float(&mut GpuOps::new(gpu, KvDtype::F32), 1e-3));
        }
    }

    #[test]
    fn batches_and_caches_change_nothing() {
        for (_, gpu) in profiles() {
            infer_core::block_on(check_cache(&mut GpuOps::new(gpu, KvDtype::F32)));
        }
    }

    /// What a conversation does with a session: answers, answers cut short, other tokens than it gave, the cache's end.
    async fn conversation(gpu: &Gpu, ahead: usize) -> Vec<u32> {
        const CONTEXT: usize = 48;
        let golden = Golden::open("arch/llama");
        let prompt = golden.tensors("logits.safetensors").ids("ids_0");
        let mut ops = GpuOps::new(gpu.clone(), KvDtype::F32).with_ahead(ahead);
        let (config, parts) = mlc_parts(&mut ops, &golden, "q4f16_1").await;
        let mut session = Session::new(ops, &config, parts, CONTEXT).unwrap();
        let mut text = vec![session.most_likely(&prompt[..20]).await.unwrap()];
        for step in 0..CONTEXT - 20 {
            let next = if step == 5 { prompt[20] } else { text[text.len() - 1] };
            text.push(session.most_likely(&[next]).await.unwrap());
            assert_eq!(session.cache().len(), 21 + step, "the cache holds what was asked for");
        }
        session.cache_mut().truncate(22);
        assert_eq!(session.cache().tokens()[20..], text[..2]);
        let logits = session.logits(&[text[2]]).await.unwrap();
        text.push((0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap() as u32);
        text.push(session.most_likely(&prompt[20..25]).await.unwrap());
        text
    }

    #[test]
    fn running_ahead_changes_nothing() {
        for (profile, gpu) in profiles() {
            let expected = infer_core::block_on(conversation(&gpu, 0));
            for ahead in [1, 2, 5] {
                assert_eq!(infer_core::block_on(conversation(&gpu, ahead)), expected, "{profile}, {ahead} ahead");
            }
        }
    }
}
