//! Matrices solved on a GPU in f32 against the CPU's solution in f64: equal quality, nearly equal codes.

mod common;

use gptq_quant::{Calibrate, Grid, Hessian, HostSums, Options, Quantized, TokenWeight};
use infer_core::{
    KvDtype, block_on,
    ops::{candle::CandleOps, gpu::GpuOps},
};
use ndarray::Array2;

use common::device;

/// Pseudorandom numbers in [-1, 1).
fn noise(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2) + 1;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// The Hessian of correlated inputs, one of which is always zero, with drift.
fn hessian(cols: usize, with_drift: bool, stream_rows: Option<usize>) -> Hessian {
    let tokens = 3 * cols;
    let mut x = noise(1, tokens * cols);
    for (t, row) in x.chunks_mut(cols).enumerate() {
        let common = ((t * 37) % 19) as f32 / 9.0 - 1.0;
        row.iter_mut().enumerate().for_each(|(k, v)| *v = *v * (1.0 + (k % 5) as f32) + common);
        row[3] = 0.0;
    }
    let float: Vec<f32> =
        x.iter().zip(noise(2, tokens * cols)).map(|(x, n)| if *x == 0.0 { 0.0 } else { x + 0.05 * n }).collect();
    let mut sums = HostSums::new(cols, TokenWeight::PLAIN.in_windows(tokens), with_drift);
    if let Some(rows) = stream_rows {
        // The stream drift is a linear function of the inputs.
        let stream = noise(4, tokens * rows);
        let follows = |i: usize| 0.02 * x[i / rows * cols + i % rows % cols];
        let float_stream: Vec<f32> = (0..stream.len()).map(|i| stream[i] + follows(i)).collect();
        sums.expect_streams(rows);
        sums.add_streams(&x, [&stream, &float_stream]);
    }
    sums.add(&x, with_drift.then_some(&float[..]));
    sums.finish()
}

fn check(rows: usize, cols: usize, options: Options) {
    let Some(gpu) = device() else { return };
    let weights = Array2::from_shape_vec((rows, cols), noise(3, rows * cols)).unwrap();
    let hessian = hessian(cols, options.gptaq_alpha != 0.0, (options.stream_alpha != 0.0).then_some(rows));
    let mut on_cpu = CandleOps::default();
    let cpu = block_on(on_cpu.solve(weights.view(), &hessian, &(), &options)).unwrap().quantized;
    let mut ops = GpuOps::new(gpu, KvDtype::F32);
    let resident = ops.place(&hessian).unwrap();
    let device = block_on(ops.solve(weights.view(), &hessian, &resident, &options)).unwrap().quantized;

    let real = |quantized: &Quantized| quantized.relative_error(weights.view(), &hessian.products);
    let (error, expected) = (real(&device), real(&cpu));
    assert!((error / expected - 1.0).abs() < 0.01, "on the device {error}, on the CPU {expected}");
    assert!((device.loss / cpu.loss - 1.0).abs() < 0.01, "losses {} and {}", device.loss, cpu.loss);
    let same = device.codes.iter().zip(&cpu.codes).filter(|(a, b)| a == b).count();
    println!("{options:?}: {same} of {} codes, errors {error} and {expected}", rows * cols);
    assert!(same as f64 > 0.97 * (rows * cols) as f64, "{same} of {} codes are the same", rows * cols);
    assert_eq!((device.zeros, device.g_idx, device.method), (cpu.zeros, cpu.g_idx, cpu.method));
    let storable = device.scales.iter().all(|&scale| half::f16::from_f32(scale).to_f32() == scale);
    assert!(storable, "scales are exact in f16");
}

fn options(bits: u32, group: usize, sym: bool) -> Options {
    Options::new(Grid { bits, group_size: Some(group), sym })
}

#[test]
fn gptq_without_drift() {
    check(70, 128, options(4, 32, true));
    check(33, 256, Options { act_order: false, ..options(3, 128, false) });
}

#[test]
fn with_drift_and_refinement() {
    check(70, 128, Options { gptaq_alpha: 1.0, refine: 5, ..options(4, 32, true) });
    check(64, 256, Options { gptaq_alpha: 0.5, refine: 2, ..options(4, 128, false) });
    check(16, 192, Options { refine: 3, ..options(8, 64, true) });
}

#[test]
fn with_stream_drift() {
    check(72, 128, Options { gptaq_alpha: 1.0, stream_alpha: 1.0, refine: 2, ..options(4, 32, true) });
    check(64, 256, Options { gptaq_alpha: 0.5, stream_alpha: 0.5, ..options(4, 128, false) });
}

#[test]
fn with_scales_rounded_afterwards() {
    check(70, 128, Options { scales_first: false, signed_scales: false, ..options(4, 32, true) });
}

#[test]
fn values_exact_in_f16() {
    check(200, 96, Options { values_in_f16: true, gptaq_alpha: 1.0, refine: 3, ..options(4, 32, true) });
}
