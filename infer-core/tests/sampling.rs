//! Compares tokens drawn on the device with tokens of the host's sampler for the same logits and random numbers, and with the
//! distribution.

mod common;

use infer_core::{
    KvDtype, OpenOptions, SamplingParams, block_on,
    ops::{
        Choice, Choose, Loading,
        gpu::{GpuOps, GpuTensor},
    },
    sampler::Sampler,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use webgpu_kernels::sample::{Sample, is_clear};

fn ops(options: OpenOptions) -> Option<GpuOps> {
    Some(GpuOps::new(common::gpu(options)?, KvDtype::F16).with_ahead(1))
}

fn params(change: impl Fn(&mut SamplingParams)) -> SamplingParams {
    let mut params = SamplingParams { seed: Some(11), ..SamplingParams::default() };
    change(&mut params);
    params
}

/// A token drawn on the device from a row of logits.
fn drawn(ops: &mut GpuOps, logits: &GpuTensor, by: &Sample, random: f64) -> u32 {
    let tokens = ops.choose(logits, &[Choice::Drawn { by, random }]).unwrap();
    block_on(ops.tokens(tokens)).unwrap()[0]
}

/// Draws `count` tokens from `logits` on device and host, each with the history of the earlier ones.
fn check(ops: &mut GpuOps, params: &SamplingParams, logits: &[f32], count: usize) {
    let prompt = [1, 5, 9, 13];
    let mut host = Sampler::new(params, &prompt).unwrap();
    let mut device = host.clone();
    let x = ops.upload(1, logits.len(), logits).unwrap();
    let draw = ops.new_draw(device.rules(), logits.len(), device.history(logits.len(), &[]).as_deref()).unwrap();
    let draw = draw.expect("the device draws");
    let (mut generated, mut clear) = (Vec::new(), 0);
    for i in 0..count {
        let random = device.random(0);
        let history = host.history(logits.len(), &generated);
        let is_clear = is_clear(logits, &host.rules(), history.as_deref(), random, 1e-5);
        let expected = host.sample(&mut logits.to_vec(), &generated);
        let found = drawn(ops, &x, &draw, random);
        device.advance();
        clear += usize::from(is_clear);
        assert!(found == expected || !is_clear, "draw {i} of {params:?}: {found}, expected {expected}");
        generated.push(found);
        if found != expected {
            // The histories differ from here on.
            break;
        }
    }
    assert!(10 * clear >= 9 * generated.len(), "{clear} of {} draws are clear", generated.len());
}

#[test]
fn device_and_host_draw_the_same_tokens() {
    for options in [OpenOptions::default(), OpenOptions::WEBGPU_DEFAULTS] {
        let Some(mut ops) = ops(options) else { return };
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let logits: Vec<f32> =
            (0..5000).map(|i| rng.random_range(-4.0..4.0) + if i % 400 == 9 { 8.0 } else { 0.0 }).collect();
        let cases: [&dyn Fn(&mut SamplingParams); 11] = [
            &|_| {},
            &|p| p.temperature = 0.6,
            &|p| p.top_k = 20,
            &|p| p.top_p = 0.9,
            &|p| p.min_p = 0.02,
            &|p| (p.top_k, p.top_p, p.min_p, p.temperature) = (40, 0.95, 0.05, 0.8),
            &|p| (p.presence_penalty, p.frequency_penalty) = (0.7, 0.4),
            &|p| (p.repetition_penalty, p.top_p) = (1.3, 0.9),
            &|p| (p.repetition_penalty, p.temperature) = (1.2, 0.0),
            &|p| p.logit_bias = vec![(7, 12.0), (9, -100.0), (9999, 3.0)],
            &|p| (p.logit_bias, p.temperature) = (vec![(7, 90.0)], 0.0),
        ];
        cases.iter().for_each(|change| check(&mut ops, &params(change), &logits, 40));
    }
}

/// Chi-square test of the device's draws. 99.9 % of correct samplers pass; the seed is fixed.
#[test]
fn device_draws_follow_the_distribution() {
    const DRAWS: usize = 2000;
    let Some(mut ops) = ops(OpenOptions::default()) else { return };
    let p = [0.4, 0.25, 0.125, 0.125, 0.0625, 0.0375];
    let logits: Vec<f32> = p.iter().map(|p: &f64| p.ln() as f32 - 2.0).collect();
    // With top-p, the first four tokens remain; the last two of them are equally likely.
    let cases = [(1.0, 1.0, p.to_vec()), (0.85, 0.9, vec![0.4, 0.25, 0.125, 0.125, 0.0, 0.0])];
    for (top_p, held, expected) in cases {
        let mut sampler = Sampler::new(&params(|p| p.top_p = top_p), &[]).unwrap();
        let x = ops.upload(1, p.len(), &logits).unwrap();
        let draw = ops.new_draw(sampler.rules(), p.len(), None).unwrap().expect("the device draws");
        let mut counts = [0usize; 6];
        for _ in 0..DRAWS {
            counts[drawn(&mut ops, &x, &draw, sampler.random(0)) as usize] += 1;
            sampler.advance();
        }
        let mut chi_square = 0.0;
        for (&count, p) in counts.iter().zip(&expected) {
            assert!(*p > 0.0 || count == 0, "{counts:?}");
            let expected = p / held * DRAWS as f64;
            chi_square += if expected > 0.0 { (count as f64 - expected).powi(2) / expected } else { 0.0 };
        }
        // The 99.9th percentile of five degrees of freedom.
        assert!(chi_square <= 20.5, "{chi_square}: {counts:?}");
    }
}
