//! Hessians summed on a GPU against f64 sums of the same activations, from tiny models and from extreme random numbers.

mod common;

use std::{path::Path, rc::Rc};

use faer::Mat;
use gptq_quant::{
    Calibrate, TokenWeight,
    calibrate::SumShape,
    observe::{ObserveOps, Pass},
};
use infer_core::{
    Gpu, KvDtype, block_on,
    model::{
        KvWindows, Layer,
        decoder::{RopeTables, embed},
        load_checkpoint,
    },
    ops::{Backend, Forward, Loading, gpu::GpuOps},
};
use model_format::{Checkpoint, DecoderConfig, Role, SafetensorsCheckpoint};
use webgpu_kernels::gram::TokenWeights;

use common::{device, testdata};

/// Largest error relative to the norm of the sums.
const TOLERANCE: f64 = 1e-5;

/// Width of the artificial residual stream.
const STREAM_COLS: usize = 36;

fn open(folder: &Path) -> SafetensorsCheckpoint {
    SafetensorsCheckpoint::open(folder).unwrap()
}

/// `2 / tokens * sum of weight_t a_t x_t^T` in f64, of rows `[tokens, rows]` and `[tokens, cols]`.
fn sum(a: impl Fn(usize, usize) -> f64, rows: usize, x: &[f32], cols: usize, weights: TokenWeights) -> Mat<f64> {
    let tokens = x.len() / cols;
    let mut sum = Mat::<f64>::zeros(rows, cols);
    for t in 0..tokens {
        let row = &x[t * cols..][..cols];
        let mean_square = row.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>() / cols as f64;
        let by_norm = if weights.equal_norm && mean_square > 0.0 { 1.0 / mean_square } else { 1.0 };
        let by_place = if t % weights.window == 0 { f64::from(weights.first) } else { 1.0 };
        let factor = 2.0 / tokens as f64 * by_norm * by_place;
        for j in 0..cols {
            let right = factor * f64::from(row[j]);
            for i in 0..rows {
                sum[(i, j)] += a(t, i) * right;
            }
        }
    }
    sum
}

fn check_near(what: &str, found: &Mat<f64>, expected: &Mat<f64>) {
    let error = (found - expected).norm_l2() / expected.norm_l2();
    println!("{what}: {error:.1e}");
    assert!(error < TOLERANCE, "{what}: {error:.1e}");
    assert!(expected.norm_l2() > 0.0, "{what}: there is something to sum");
}

/// Sums `batches` of inputs and float inputs with every kind of token weight.
fn check(ops: &mut GpuOps, what: &str, cols: usize, window: usize, batches: &[(Vec<f32>, Vec<f32>)]) {
    let weights = [
        TokenWeight::PLAIN,
        TokenWeight::default(),
        TokenWeight { equal_norm: false, first_token: 0.02 },
        TokenWeight { equal_norm: true, first_token: 0.5 },
    ];
    let x: Vec<f32> = batches.iter().flat_map(|(x, _)| x.clone()).collect();
    let float: Vec<f32> = batches.iter().flat_map(|(_, float)| float.clone()).collect();
    for (weight, with_drift) in weights.into_iter().zip([true, true, false, true]) {
        let weights = weight.in_windows(window);
        let shape = SumShape { cols, weights, with_drift, stream_rows: Some(STREAM_COLS) };
        let mut sums = ops.new_sums(shape).unwrap();
        let mut late = Vec::new();
        for (x, float) in batches {
            let rows = x.len() / cols;
            // Columns of the inputs serve as the residual stream.
            let stream = |values: &[f32]| -> Vec<f32> {
                values.chunks(cols).flat_map(|row| (0..STREAM_COLS).map(|i| row[i % cols])).collect()
            };
            let streams = [stream(x), stream(float)].map(|values| ops.upload(rows, STREAM_COLS, &values).unwrap());
            let [x, float] = [x, float].map(|values| Rc::new(ops.upload(rows, cols, values).unwrap()));
            // With equal norms, the drift is added at once; otherwise later.
            let at_once = with_drift && weight.equal_norm;
            let streams = Some([&streams[0], &streams[1]]);
            block_on(ops.add(&mut sums, &x, at_once.then_some(&*float), streams)).unwrap();
            if with_drift && !at_once {
                late.push([x, float]);
            }
        }
        let (hessian, resident) = block_on(ops.finish(sums, &late)).unwrap();
        let drift = block_on(resident.drift(ops)).unwrap();
        let what = format!("{what}, {weight:?}");
        let at = |t: usize, i: usize| f64::from(x[t * cols + i]);
        let stream_drift = block_on(resident.stream_drift(ops)).unwrap().expect("stream drift was summed");
        let change = |t: usize, i: usize| f64::from(float[t * cols + i % cols]) - at(t, i % cols);
        check_near(&format!("{what}, streams"), &stream_drift, &sum(change, STREAM_COLS, &x, cols, weights));
        check_near(&what, &hessian.products, &sum(at, cols, &x, cols, weights));
        assert_eq!(drift.is_some(), with_drift);
        if let Some(drift) = drift {
            let change = |t: usize, i: usize| f64::from(float[t * cols + i]) - at(t, i);
            check_near(&format!("{what}, drift"), &drift, &sum(change, cols, &x, cols, weights));
        }
    }
}

/// The inputs `[tokens, cols]` of the matrix `role` for windows of `window` tokens, computed on the device.
fn inputs(gpu: &Gpu, checkpoint: &dyn Checkpoint, tokens: &[u32], window: usize, role: Role) -> Vec<f32> {
    let config = DecoderConfig::from_hf(checkpoint.config_json()).unwrap();
    let mut ops = ObserveOps::new(GpuOps::new(gpu.clone(), KvDtype::F32));
    let mut parts = load_checkpoint(&mut ops, &config, checkpoint, None, &mut ()).unwrap();
    let rope = RopeTables::new(&mut ops, &config, window).unwrap();
    let windows = KvWindows::new(tokens.len() / window, window);
    let mut kv = ops.new_kv(windows.shape(&config)).unwrap();
    let rows = ops.place_rows(&windows.spans(windows.count()));
    let table = parts.take_matrix(Role::Embedding);
    let mut x = embed(&mut ops, &config, &table, tokens);
    let last = role.layer().expect("a layer's matrix");
    for i in 0..=last {
        let layer = Layer::new(&config, &mut parts, i);
        ops.begin(Pass { start: None, stop: (i == last).then_some(role) }, None);
        let delta = layer.forward(&mut ops, &mut x, rope.table(false), &mut kv, &rows);
        if i < last {
            ops.add_assign(&mut x, &delta);
        }
    }
    let observed: Rc<_> = ops.take_observed();
    block_on(ops.inner().read(&observed)).unwrap()
}

/// Pseudorandom tokens of a vocabulary of 512.
fn tokens(count: usize, seed: u32) -> Vec<u32> {
    let mut state = seed;
    let mut token = || {
        state = state.wrapping_mul(1664525).wrapping_add(1013904223);
        state >> 23
    };
    (0..count).map(|_| token()).collect()
}

#[test]
fn sums_of_float_and_quantized_models() {
    let Some(gpu) = device() else { return };
    let mut ops = GpuOps::new(gpu.clone(), KvDtype::F32);
    for (float, quantized) in [("arch/llama/hf", "gptq/llama-sym-g32-v1"), ("arch/qwen2/hf", "gptq/qwen2-sym-g32-v1")] {
        let (float, quantized) = (open(&testdata(float)), open(&testdata(quantized)));
        for role in [Role::Qkv(0), Role::AttentionOut(1), Role::GateUp(1), Role::Down(1)] {
            // Windows of odd length, in batches of different sizes.
            let window = 37;
            let batches = [5, 2].map(|windows| {
                let tokens = tokens(windows * window, windows as u32);
                let of = |checkpoint: &SafetensorsCheckpoint| inputs(&gpu, checkpoint, &tokens, window, role);
                (of(&quantized), of(&float))
            });
            let cols = batches[0].0.len() / (5 * window);
            if role == Role::Qkv(0) {
                assert_eq!(batches[0].0, batches[0].1, "no quantized matrix comes before this one");
                continue;
            }
            check(&mut ops, &format!("{} {role:?}", float.location()), cols, window, &batches);
        }
    }
}

/// Pseudorandom numbers; a few tokens and a few inputs are huge, as in models.
fn uneven(tokens: usize, cols: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut uniform = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    let mut values = Vec::with_capacity(tokens * cols);
    for t in 0..tokens {
        for k in 0..cols {
            let by_token = if t % 97 == 0 { 200.0 } else { 1.0 };
            let by_input = if k % 31 == 3 { 30.0 } else { 1.0 };
            values.push(uniform() * uniform() * by_token * by_input);
        }
    }
    values
}

#[test]
fn sums_of_tall_and_odd_shapes() {
    let Some(gpu) = device() else { return };
    let mut ops = GpuOps::new(gpu, KvDtype::F32);
    // Batches of tokens, inputs, window.
    for (batches, cols, window) in [
        (&[1][..], 4, 1),
        (&[3], 36, 3),
        (&[7, 7, 14], 132, 7),
        (&[130, 65], 100, 65),
        (&[64], 580, 64),
        (&[20_000, 20_000, 3_000], 64, 1000),
    ] {
        let batches: Vec<_> = batches
            .iter()
            .map(|&tokens| {
                let x = uneven(tokens, cols, tokens as u64);
                let change = uneven(tokens, cols, 77);
                let float = x.iter().zip(change).map(|(x, change)| x + 0.03 * change).collect();
                (x, float)
            })
            .collect();
        check(&mut ops, &format!("{cols} inputs"), cols, window, &batches);
    }
}
