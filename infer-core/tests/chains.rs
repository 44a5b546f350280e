//! Forces kernel chains to fail. The answer equals the one of separate dispatches, and the device uses no chains afterwards.

mod common;

use std::sync::Arc;

use common::Golden;
use infer_core::{
    CacheFolder, DeviceCache, Error, Gpu, GpuError, KvDtype, OpenOptions, Result, SamplingParams, block_on,
    model::{Session, load_mlc},
    ops::gpu::{ChainChoice, GpuOps},
    sampler::Sampler,
};
use model_format::{ChatConfig, DecoderConfig, DirFiles, QuantFormat};

/// Few workgroups, so that each processes several ranges of rows.
const CHAIN: ChainChoice = ChainChoice { workgroup: 64, rows: 8, groups: 3, range: 4 };
const PROMPT: usize = 20;
const STEPS: usize = 20;
const SEED: u64 = 5;

/// A device with the kernels of a real GPU. `None` without a device, or if it does not support chains.
fn gpu() -> Option<Gpu> {
    let gpu = common::gpu(OpenOptions::PROFILES[1].1)?;
    (gpu.caps().max_bindings > 8 && gpu.caps().subgroups.is_some()).then_some(gpu)
}

fn session(ops: GpuOps) -> Session<GpuOps> {
    let mut ops = ops.with_ahead(2);
    let files = DirFiles::new(Golden::open("arch/llama").folder("q4f16_1"));
    let chat_config = block_on(ChatConfig::read(&files)).unwrap();
    let config = DecoderConfig::from_mlc(&chat_config).unwrap();
    let format = QuantFormat::by_name(&chat_config.quantization).unwrap();
    let parts = block_on(load_mlc(&mut ops, &config, format, &files, &mut ())).unwrap();
    Session::new(ops, &config, parts, 128, 1).unwrap()
}

fn chained(gpu: &Gpu) -> GpuOps {
    GpuOps::new(gpu.clone(), KvDtype::F32).with_chain(CHAIN)
}

fn prompt() -> Vec<u32> {
    Golden::open("arch/llama").tensors("logits.safetensors").ids("ids_0")[..PROMPT].to_vec()
}

/// A way to choose the next token.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    MostLikely,
    Drawn,
    Logits,
}

const WAYS: [Way; 3] = [Way::MostLikely, Way::Drawn, Way::Logits];

/// The tokens of an answer.
fn answer(session: &mut Session<GpuOps>, way: Way) -> Result<Vec<u32>> {
    let params = SamplingParams { temperature: 0.8, seed: Some(SEED), ..SamplingParams::default() };
    let mut sampler = Sampler::new(&params, &prompt())?;
    session.cache_mut().truncate(0);
    let (mut next, mut text) = (prompt(), Vec::new());
    for step in 0..STEPS {
        let token = match way {
            Way::MostLikely => block_on(session.most_likely(&next))?,
            Way::Drawn => block_on(session.drawn(&next, &mut sampler, &text))?.expect("drawn on the device"),
            Way::Logits => common::largest(&block_on(session.logits(&next))?),
        };
        assert_eq!(session.cache().len(), PROMPT + step, "{way:?}: tokens in the cache");
        text.push(token);
        next = vec![token];
    }
    Ok(text)
}

#[test]
fn after_an_expired_wait_the_work_runs_again_without_chains() {
    let Some(first) = gpu() else { return };
    for way in WAYS {
        let expected = answer(&mut session(GpuOps::new(first.clone(), KvDtype::F32)), way).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let cache: Arc<dyn DeviceCache> = CacheFolder::at(folder.path());

        let mut whole = session(chained(&gpu().unwrap()).with_cache(Some(cache.clone())));
        assert_eq!(answer(&mut whole, way).unwrap(), expected, "{way:?}: chained");
        assert!(whole.ops().has_chained() && whole.take_notice().is_none(), "{way:?}: chains run here");

        let device = gpu().unwrap();
        let mut expiring = session(chained(&device).with_most_polls(0).with_cache(Some(cache.clone())));
        assert_eq!(answer(&mut expiring, way).unwrap(), expected, "{way:?}: expired");
        assert!(!expiring.ops().has_chained(), "{way:?}: no more chains");
        let notice = expiring.take_notice().unwrap();
        assert!(notice.contains("expired") && notice.contains(&device.summary().name), "{notice}");
        assert_eq!(answer(&mut expiring, way).unwrap(), expected, "{way:?}: after it expired");
        assert_eq!(expiring.take_notice(), None, "{way:?}: one notice");

        // Another process with the same device cache uses no chains; one with another cache does.
        let mut next = session(chained(&gpu().unwrap()).with_cache(Some(cache)));
        assert_eq!(answer(&mut next, way).unwrap(), expected, "{way:?}: in the next process");
        assert!(!next.ops().has_chained() && next.take_notice().is_none(), "{way:?}: in the next process");
        let mut elsewhere = session(chained(&gpu().unwrap()));
        assert_eq!(answer(&mut elsewhere, way).unwrap(), expected, "{way:?}: elsewhere");
        assert!(elsewhere.ops().has_chained(), "{way:?}: elsewhere");
    }
}

#[test]
fn a_device_lost_during_a_chain_gets_no_more_chains() {
    let Some(device) = gpu() else { return };
    let folder = tempfile::tempdir().unwrap();
    let cache: Arc<dyn DeviceCache> = CacheFolder::at(folder.path());
    let mut lost = session(chained(&device).with_cache(Some(cache.clone())));
    let first = block_on(lost.most_likely(&prompt())).unwrap();
    let second = block_on(lost.most_likely(&[first])).unwrap();
    device.destroy();
    let error = block_on(async {
        let mut next = second;
        loop {
            match lost.most_likely(&[next]).await {
                Ok(token) => next = token,
                Err(error) => break error,
            }
        }
    });
    assert!(matches!(error, Error::Gpu(GpuError::DeviceLost { .. })), "{error}");
    assert!(lost.take_notice().unwrap().contains("lost while a kernel chain ran"));
    let mut next = session(chained(&gpu().unwrap()).with_cache(Some(cache)));
    answer(&mut next, Way::MostLikely).unwrap();
    assert!(!next.ops().has_chained());

    // A device lost without a pending chain keeps its chains.
    let other = tempfile::tempdir().unwrap();
    let cache: Arc<dyn DeviceCache> = CacheFolder::at(other.path());
    let device = gpu().unwrap();
    let mut plain = session(GpuOps::new(device.clone(), KvDtype::F32).with_cache(Some(cache.clone())));
    block_on(plain.most_likely(&prompt())).unwrap();
    device.destroy();
    block_on(plain.logits(&[1])).unwrap_err();
    assert_eq!(plain.take_notice(), None);
    let mut next = session(chained(&gpu().unwrap()).with_cache(Some(cache)));
    answer(&mut next, Way::MostLikely).unwrap();
    assert!(next.ops().has_chained());
}
