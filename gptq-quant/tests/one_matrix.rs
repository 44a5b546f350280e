//! GPTQ of one matrix: a case by hand, any number of threads, and Hessians that cannot be factored.

use faer::Mat;
use gptq_quant::{
    Calibrate, Grid, GroupParams, Hessian, HostSums, Options, ScaleRounding, ScaleSearch, TokenWeight,
    gptq::{Method, Quantized, quantize, round_to_nearest},
    gptq_py,
};
use infer_core::{block_on, ops::candle::CandleOps};
use ndarray::{Array2, array, s};

const GRID: Grid = Grid { bits: 4, group_size: Some(32), sym: true };

/// Pseudorandom numbers in [-1, 1).
fn numbers(rows: usize, cols: usize, seed: u64) -> Array2<f32> {
    let mut state = seed;
    Array2::from_shape_simple_fn((rows, cols), || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((state >> 40) as f32 / (1u64 << 23) as f32) - 1.0
    })
}

/// The Hessian of correlated inputs.
fn hessian(cols: usize) -> Mat<f64> {
    let inputs = numbers(2 * cols, cols / 4, 1).dot(&numbers(cols / 4, cols, 2)) + 0.3 * numbers(2 * cols, cols, 3);
    let mut sums = HostSums::new(cols, TokenWeight::PLAIN.in_windows(2 * cols), false);
    sums.add(inputs.as_slice().unwrap(), None);
    sums.finish().products
}

#[test]
fn four_by_four_by_hand() {
    // With this H^-1 = U^T U, the error e_k of column k shifts column k + 1 by -e_k / 2 and no other column.
    let u_inverse = |i: usize, j: usize| if j < i { 0.0 } else { (-0.5f64).powi((j - i) as i32) };
    let h = Mat::from_fn(4, 4, |i, j| (0..4).map(|k| u_inverse(i, k) * u_inverse(j, k)).sum::<f64>());
    // The range of each row is 15, so its scale is 1 and its zero 7.
    let weights = array![
        [8.0f32, -7.0, 2.4, 1.6], // 2.4 rounds to 2, which shifts 1.6 to 1.4
        [-7.0, 8.0, -3.6, 0.6],   // -3.6 rounds to -4, 0.6 shifts to 0.4
        [8.0, -6.6, -7.0, 0.45],  // -6.6 rounds to -7, -7 shifts to -7.2, 0.45 to 0.55
        [7.6, -7.0, 8.0, 3.47],   // 7.6 rounds to 8, -7 shifts to -6.8, 8 to 7.9, 3.47 to 3.52
    ];
    let by_hand =
        array![[8.0f32, -7.0, 2.0, 1.0], [-7.0, 8.0, -4.0, 0.0], [8.0, -7.0, -7.0, 1.0], [8.0, -7.0, 8.0, 4.0]];
    let loss = 2.0 * (0.4 * 0.4 + 0.4 * 0.4)
        + (0.4f64 * 0.4 + 0.2 * 0.2 + 0.45 * 0.45)
        + (0.4 * 0.4 + 0.2 * 0.2 + 0.1 * 0.1 + 0.48 * 0.48);

    for block_size in [1, 2, 3, 128] {
        let grid = Grid { bits: 4, group_size: None, sym: false };
        let scale_search = ScaleSearch::Range;
        let options = Options { scale_search, act_order: false, damp_percent: 0.0, block_size, ..Options::new(grid) };
        let quantized = gptq_py::quantize(weights.view(), &h, &options);
        assert_eq!(quantized.dequantize(), by_hand, "blocks of {block_size}");
        assert!((quantized.loss - loss).abs() < 1e-5, "{} is not {loss}", quantized.loss);
        assert_eq!(quantized.method, Method::Gptq { damp_percent: 0.0 });
    }
}

#[test]
fn same_result_on_any_number_of_threads() {
    let (rows, cols, tokens) = (100, 320, 700);
    let weights = numbers(rows, cols, 4);
    let inputs = numbers(tokens, cols / 4, 1).dot(&numbers(cols / 4, cols, 2)) + 0.3 * numbers(tokens, cols, 3);
    let float = &inputs + 0.05 * numbers(tokens, cols, 5);
    let asymmetric = Grid { sym: false, ..GRID };
    let all = Options { gptaq_alpha: 1.0, refine: 2, ..Options::new(GRID) };
    for options in [
        Options::new(GRID),
        all,
        Options { static_groups: false, ..Options { grid: asymmetric, ..all } },
        Options { scale_search: ScaleSearch::Mse, act_order: false, ..Options::new(asymmetric) },
    ] {
        let on = |threads: usize| -> Quantized {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let mut sums = HostSums::new(cols, TokenWeight::default().in_windows(tokens), true);
                sums.add(inputs.as_slice().unwrap(), Some(float.as_slice().unwrap()));
                let Hessian { products, drift, .. } = sums.finish();
                quantize(weights.view(), &products, drift.as_ref(), &options)
            })
        };
        let one = on(1);
        for threads in [2, 3, 8] {
            assert_eq!(on(threads), one, "{threads} threads, {options:?}");
        }
    }
}

#[test]
fn every_variant_beats_round_to_nearest() {
    let (weights, hessian) = (numbers(64, 288, 5), hessian(288));
    // 288 columns are two groups of 128 and a shorter one.
    for group_size in [Some(32), Some(128), None] {
        for sym in [true, false] {
            for act_order in [true, false] {
                for static_groups in [true, false] {
                    let grid = Grid { bits: 4, group_size, sym };
                    let options = Options { act_order, static_groups, ..Options::new(grid) };
                    let nearest = round_to_nearest(weights.view(), None, &options);
                    let quantized = quantize(weights.view(), &hessian, None, &options);
                    assert_ne!(quantized.codes, nearest.codes);
                    let error = |q: &Quantized| q.relative_error(weights.view(), &hessian);
                    let (ours, theirs) = (error(&quantized), error(&nearest));
                    assert!(ours < 0.6 * theirs, "{options:?}: {ours} and {theirs}");
                    let natural = (0..288).map(|k| group_size.map_or(0, |size| k / size) as u32);
                    let is_natural = quantized.g_idx.iter().copied().eq(natural);
                    assert_eq!(is_natural, !act_order || static_groups || group_size.is_none(), "{options:?}");
                }
            }
        }
    }
}

/// Each search is better at its own objective than the others.
#[test]
fn searches_minimize_their_objective() {
    let weights = numbers(1, 32, 9).into_raw_vec_and_offset().0;
    let weights: Vec<f32> = weights.iter().map(|w| w.powi(7)).collect();
    let wide: Vec<f64> = weights.iter().map(|&w| f64::from(w)).collect();
    for sym in [true, false] {
        let grid = Grid { sym, ..GRID };
        let error = |params: GroupParams, norm: f64| -> f64 {
            wide.iter().map(|&w| (grid.value(grid.code(w, params), params) - w).abs().powf(norm)).sum()
        };
        let range = grid.storable(grid.range_params(&wide, false), ScaleRounding::F16);
        let mse = grid.storable(grid.range_params(&wide, true), ScaleRounding::F16);
        let hessian = grid.search_params(&weights, &[1.0; 32], true, ScaleRounding::F16);
        assert!(error(mse, 2.4) < error(range, 2.4), "{range:?} {mse:?}");
        assert!(error(hessian, 2.0) < error(range, 2.0), "{range:?} {hessian:?}");
        for params in [range, mse, hessian] {
            assert_eq!(half::f16::from_f64(params.scale).to_f64(), params.scale);
            assert!(params.zero >= 1.0);
        }
    }
    // A symmetric group without negative weights uses the whole range, except in gptq.py.
    let positive = [0.0, 7.5];
    assert_eq!(GRID.range_params(&positive, false).scale, 1.0);
    assert_eq!(gptq_py::range_params(GRID, &positive, false).scale, 0.5);
}

#[test]
fn dead_inputs_get_weight_zero() {
    let weights = numbers(16, 64, 6);
    let mut hessian = hessian(64);
    for i in 0..64 {
        hessian[(7, i)] = 0.0;
        hessian[(i, 7)] = 0.0;
    }
    let quantized = quantize(weights.view(), &hessian, None, &Options::new(GRID));
    assert!(quantized.dequantize().column(7).iter().all(|&w| w == 0.0));
    assert!(matches!(quantized.method, Method::Gptq { .. }));
}

/// Damping and codes of the other inputs do not depend on dead inputs, for any size of activations.
#[test]
fn dead_inputs_do_not_affect_the_others() {
    let weights = numbers(16, 128, 8);
    for size in [1e-6, 1.0, 1e6] {
        let alive = Mat::from_fn(64, 64, |i, j| size * hessian(64)[(i, j)]);
        // The second half of the inputs is always zero.
        let with_dead = Mat::from_fn(128, 128, |i, j| if i < 64 && j < 64 { alive[(i, j)] } else { 0.0 });
        for act_order in [false, true] {
            let options = Options { act_order, ..Options::new(GRID) };
            let expected = quantize(weights.slice(s![.., ..64]), &alive, None, &options);
            let found = quantize(weights.view(), &with_dead, None, &options);
            assert_eq!(found.codes.slice(s![.., ..64]), expected.codes, "{size} {act_order}");
            assert!((found.loss / expected.loss - 1.0).abs() < 1e-9, "{size}: {} {}", found.loss, expected.loss);
            // gptq.py includes them in the mean, which overdamps small activations.
            let gptq_py = gptq_py::quantize(weights.view(), &with_dead, &options);
            assert_eq!(gptq_py.loss > 2.0 * expected.loss, size < 1.0, "{size}: {} {}", gptq_py.loss, expected.loss);
        }
    }
}

#[test]
fn damping_grows_until_the_hessian_can_be_factored() {
    let weights = numbers(16, 64, 7);
    // Eigenvalues 1 + 0.05 * 63 and 1 - 0.05, then one made negative.
    let mut hessian = Mat::from_fn(64, 64, |i, j| if i == j { 1.0 } else { 0.05 });
    hessian[(5, 5)] = 0.1;
    hessian[(5, 6)] = 0.35;
    hessian[(6, 5)] = 0.35;
    let quantized = quantize(weights.view(), &hessian, None, &Options::new(GRID));
    let Method::Gptq { damp_percent } = quantized.method else { panic!("{:?}", quantized.method) };
    assert!((damp_percent - 0.1).abs() < 1e-12, "{damp_percent}");
}

#[test]
fn fewer_tokens_than_inputs_suffice() {
    let (rows, cols, tokens) = (16, 128, 20);
    let (weights, inputs) = (numbers(rows, cols, 7), numbers(tokens, cols, 8));
    let mut sums = HostSums::new(cols, TokenWeight::PLAIN.in_windows(tokens), false);
    sums.add(inputs.as_slice().unwrap(), None);
    let hessian = sums.finish().products;
    let options = Options::new(GRID);
    let quantized = quantize(weights.view(), &hessian, None, &options);
    // Damping makes the Hessian of rank 20 positive definite.
    assert_eq!(quantized.method, Method::Gptq { damp_percent: options.damp_percent });
    let error = |q: &Quantized| q.relative_error(weights.view(), &hessian);
    let nearest = round_to_nearest(weights.view(), None, &options);
    assert!(error(&quantized) < 0.2 * error(&nearest), "{} and {}", error(&quantized), error(&nearest));
}

#[test]
fn matrices_without_a_factor_are_rounded_to_nearest() {
    let weights = numbers(16, 64, 8);
    let options = Options::new(GRID);
    let nearest = round_to_nearest(weights.view(), None, &options);
    for hessian in [
        Mat::zeros(64, 64),
        Mat::from_fn(64, 64, |_, _| f64::NAN),
        Mat::from_fn(64, 64, |i, j| if i == j { 1.0 } else { -9.0 }),
    ] {
        let quantized = quantize(weights.view(), &hessian, None, &options);
        assert_eq!(quantized.method, Method::RoundToNearest);
        assert_eq!(quantized.codes.dim(), nearest.codes.dim());
        let worst = (quantized.dequantize() - &weights).iter().fold(0f32, |m, d| m.max(d.abs()));
        assert!(worst < 0.2, "{worst}");
    }
}

/// GPTAQ's objective: the distance of the quantized outputs on the drifted inputs from the float outputs on the float inputs,
/// `|w X'^T - v X^T|^2` summed over rows, with the damping of `quantize`.
fn objective(weights: &Array2<f32>, values: &Array2<f32>, h: &Mat<f64>, drift: Option<&Mat<f64>>, damp: f64) -> f64 {
    let n = h.nrows();
    let h = Array2::from_shape_fn((n, n), |at| h[at] + if at.0 == at.1 { damp } else { 0.0 });
    let drift = Array2::from_shape_fn((n, n), |at| drift.map_or(0.0, |drift| drift[at]));
    let (w, v) = (weights.mapv(f64::from), values.mapv(f64::from));
    let difference = &w - &v;
    (difference.dot(&h) * &difference).sum() - 2.0 * (w.dot(&drift) * &v).sum()
}

#[test]
fn refinement_ends_where_no_single_code_is_better() {
    let (rows, cols) = (6, 96);
    let h = hessian(cols);
    let drift = Mat::from_fn(cols, cols, |i, j| 0.02 * h[(i, (j + 1) % cols)]);
    let weights = numbers(rows, cols, 4);
    let damp = 0.01 * (0..cols).map(|i| h[(i, i)]).sum::<f64>() / cols as f64;
    for (grid, static_groups) in [(GRID, true), (GRID, false), (Grid { sym: false, ..GRID }, true)] {
        let run = |refine: usize| {
            let options = Options { gptaq_alpha: 1.0, refine, static_groups, ..Options::new(grid) };
            quantize(weights.view(), &h, Some(&drift), &options)
        };
        let value = |quantized: &Quantized| {
            let values = quantized.dequantize();
            objective(&weights, &values, &h, Some(&drift), damp)
        };
        let (plain, once, refined) = (run(0), run(1), run(60));
        let (before, after_one, after) = (value(&plain), value(&once), value(&refined));
        assert!(after_one < before && after <= after_one, "{before}, {after_one}, {after}");
        for row in 0..rows {
            for k in 0..cols {
                for code in [refined.codes[(row, k)].saturating_sub(1), (refined.codes[(row, k)] + 1).min(15)] {
                    let mut other = refined.clone();
                    other.codes[(row, k)] = code;
                    assert!(value(&other) >= after - 1e-6 * after.abs(), "row {row}, column {k}, code {code}");
                }
            }
        }
        let difference = &weights - &refined.dequantize();
        let n = cols;
        let damped = Array2::from_shape_fn((n, n), |at| h[at] + if at.0 == at.1 { damp } else { 0.0 });
        let difference = difference.mapv(f64::from);
        let loss = (difference.dot(&damped) * &difference).sum();
        assert!((refined.loss / loss - 1.0).abs() < 1e-4, "{} is not {loss}", refined.loss);
    }
}

#[test]
fn input_drift_is_compensated() {
    let (rows, cols, tokens) = (16, 128, 512);
    let float = numbers(tokens, cols / 4, 1).dot(&numbers(cols / 4, cols, 2)) + 0.3 * numbers(tokens, cols, 3);
    // Errors of earlier layers: each input mixes with its neighbor.
    let drifted = Array2::from_shape_fn(float.dim(), |(t, k)| 0.9 * float[(t, k)] + 0.1 * float[(t, (k + 1) % cols)]);
    let weights = numbers(rows, cols, 4);
    let mut sums = HostSums::new(cols, TokenWeight::PLAIN.in_windows(drifted.nrows()), true);
    sums.add(drifted.as_slice().unwrap(), Some(float.as_slice().unwrap()));
    let Hessian { products: h, drift, .. } = sums.finish();
    let expected = float.dot(&weights.t());
    let error = |alpha: f64, block_size: usize| {
        let options = Options { gptaq_alpha: alpha, block_size, ..Options::new(GRID) };
        let quantized = quantize(weights.view(), &h, drift.as_ref(), &options);
        let difference = drifted.dot(&quantized.dequantize().t()) - &expected;
        difference.iter().map(|d| f64::from(*d).powi(2)).sum::<f64>()
    };
    let (without, half, whole) = (error(0.0, 128), error(0.5, 128), error(1.0, 128));
    assert!(half < 0.7 * without && whole < 0.5 * without, "{without}, {half}, {whole}");
    // Blocks affect speed only.
    assert!((error(1.0, 32) - whole).abs() < 0.02 * whole);
}

#[test]
fn stream_drift_is_compensated() {
    let (rows, cols, tokens) = (24, 128, 512);
    let x = numbers(tokens, cols, 1);
    let weights = numbers(rows, cols, 2);
    // The residual stream has drifted: one part depends on the inputs, the other is noise.
    let stream = numbers(tokens, rows, 3);
    let float_stream = &stream + 0.2 * x.dot(&numbers(rows, cols, 4).t()) + 0.1 * numbers(tokens, rows, 5);
    let mut sums = HostSums::new(cols, TokenWeight::PLAIN.in_windows(tokens), false);
    sums.expect_streams(rows);
    sums.add_streams(x.as_slice().unwrap(), [stream.as_slice().unwrap(), float_stream.as_slice().unwrap()]);
    sums.add(x.as_slice().unwrap(), None);
    let hessian = sums.finish();
    let expected = float_stream + x.dot(&weights.t());
    let error = |alpha: f64, refine: usize| {
        let options = Options { stream_alpha: alpha, refine, ..Options::new(GRID) };
        let mut ops = CandleOps::default();
        let quantized = block_on(ops.solve(weights.view(), &hessian, &(), &options)).unwrap().quantized;
        let difference = &stream + x.dot(&quantized.dequantize().t()) - &expected;
        difference.iter().map(|d| f64::from(*d).powi(2)).sum::<f64>()
    };
    let (without, half, whole) = (error(0.0, 0), error(0.5, 0), error(1.0, 0));
    assert!(half < 0.6 * without && whole < 0.3 * without, "{without}, {half}, {whole}");
    assert!(error(1.0, 3) < whole, "refinement lowers the same objective");
}
