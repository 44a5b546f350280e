//! Reports against values computed here from the model's parts, and the HTML page.

mod common;

use std::path::Path;

use assert_cmd::Command;
use calib_data::TokenWindows;
use gptq_quant::{
    CheckpointWriter, Evaluation, Grid, MatrixReport, Options, Quantized, Report, Settings, Store, TokenWeight,
    evaluate, gptq::round_to_nearest, quantize_layers,
};
use infer_core::{
    Decoder, KvDtype, KvPool, block_on,
    model::{Sequence, load_checkpoint},
    ops::{Backend, candle::CandleOps, gpu::GpuOps},
};
use model_format::{Checkpoint, DecoderConfig, Param, Role, SafetensorsCheckpoint, checkpoint::read_param, params};
use ndarray::{Array2, ArrayView2};

use common::{device, prose, tiny, tiny_folder, windows};

const GRID: Grid = Grid { bits: 4, group_size: Some(32), sym: true };

/// A checkpoint being written, with the reports.
struct Recorded<'a> {
    writer: CheckpointWriter<'a>,
    matrices: Vec<(Param, Quantized, MatrixReport)>,
}

impl Store for Recorded<'_> {
    fn add(&mut self, param: &Param, quantized: &Quantized, report: &MatrixReport) -> gptq_quant::Result<()> {
        self.matrices.push((param.clone(), quantized.clone(), report.clone()));
        self.writer.add(param, quantized, report)
    }
}

fn quantize(folder: &Path, settings: &Settings, windows: &TokenWindows) -> Vec<(Param, Quantized, MatrixReport)> {
    let source = tiny("llama");
    let writer = CheckpointWriter::create(&source, folder, settings).unwrap();
    let mut store = Recorded { writer, matrices: Vec::new() };
    block_on(quantize_layers(CandleOps::default(), &source, windows, settings, &mut (), &mut store)).unwrap();
    store.writer.finish().unwrap();
    store.matrices
}

/// The inputs `[tokens, hidden_size]` of the first matrix, by the model's definition.
fn first_inputs(source: &SafetensorsCheckpoint, windows: &TokenWindows) -> Array2<f64> {
    let config = DecoderConfig::from_hf(source.config_json()).unwrap();
    let values = |role: Role| {
        read_param(source, params(&config).iter().find(|param| param.role == role).expect("a parameter")).unwrap()
    };
    let (table, norm) = (values(Role::Embedding), values(Role::InputNorm(0)));
    let cols = config.hidden_size;
    let tokens: Vec<usize> = windows.iter().flatten().map(|&token| token as usize).collect();
    Array2::from_shape_fn((tokens.len(), cols), |(t, k)| {
        let row = &table[tokens[t] * cols..][..cols];
        let mean_square = row.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / cols as f64;
        f64::from(row[k]) / (mean_square + config.rms_norm_eps).sqrt() * f64::from(norm[k])
    })
}

#[test]
fn matrix_reports_match_their_definitions() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options::new(GRID);
    let settings = Settings { token_weight: TokenWeight::PLAIN, ..Settings::new(options) };
    let text = windows(30, 40, 1);
    let matrices = quantize(folder.path(), &settings, &text);
    assert_eq!(matrices.len(), 8);

    let source = tiny("llama");
    let (param, quantized, report) = &matrices[0];
    assert_eq!(param.role, Role::Qkv(0));
    let weights = read_param(&source, param).unwrap();
    let weights = ArrayView2::from_shape((param.shape[0], param.shape[1]), &weights).unwrap();
    let x = first_inputs(&source, &text);
    let square = |m: &Array2<f64>| x.dot(&m.t()).iter().map(|v| v * v).sum::<f64>();
    let float = weights.mapv(f64::from);
    let error = |values: &Array2<f32>| square(&(&float - &values.mapv(f64::from))) / square(&float);
    let near = |found: f64, expected: f64, what: &str| {
        assert!((found / expected - 1.0).abs() < 1e-3, "{what}: {found}, expected {expected}");
    };
    near(report.relative_error, error(&quantized.dequantize()), "error");
    let nearest = round_to_nearest(weights, None, &options).dequantize();
    near(report.nearest_error, error(&nearest), "error of round-to-nearest");
    assert!(report.relative_error < report.nearest_error);
    // tr(D H D^T) with H = 2 / tokens X^T X, damped by a hundredth of its mean diagonal.
    let difference = &float - &quantized.dequantize().mapv(f64::from);
    let scale = 2.0 / x.nrows() as f64;
    let damp = 0.01 * scale * x.iter().map(|v| v * v).sum::<f64>() / x.ncols() as f64;
    let loss = scale * square(&difference) + damp * difference.iter().map(|d| d * d).sum::<f64>();
    near(report.loss.unwrap(), loss, "loss");

    for (param, quantized, report) in &matrices {
        assert_eq!(report.shape, param.shape[..]);
        assert_eq!((report.bits, report.group_size, report.sym), (4, Some(32), true));
        assert!((report.bits_per_weight() - 4.5).abs() < 1e-12);
        let mut sizes: Vec<f32> = quantized.scales.iter().map(|scale| scale.abs()).collect();
        sizes.sort_by(f32::total_cmp);
        assert_eq!(report.scales, [sizes[0], sizes[sizes.len() - 1]]);
        assert!(report.relative_error < report.nearest_error, "{report:?}");
    }
}

/// The logits `[tokens, vocabulary]` after each token of a window.
fn logits(checkpoint: &dyn Checkpoint, window: &[u32]) -> Vec<f64> {
    let config = DecoderConfig::from_hf(checkpoint.config_json()).unwrap();
    let mut ops = CandleOps::default();
    let parts = load_checkpoint(&mut ops, &config, checkpoint, None, &mut ()).unwrap();
    let decoder = Decoder::new(&mut ops, &config, parts, window.len()).unwrap();
    let (mut pool, mut cache) = KvPool::with_cache(&mut ops, &config, window.len()).unwrap();
    let hidden = decoder.hidden(&mut ops, &mut pool, &mut [Sequence { tokens: window, cache: &mut cache }]);
    let logits = decoder.head(&mut ops, &hidden);
    block_on(ops.read(&logits)).unwrap().into_iter().map(f64::from).collect()
}

/// Log-probabilities.
fn log_softmax(logits: &[f64]) -> Vec<f64> {
    let sum: f64 = logits.iter().map(|v| v.exp()).sum();
    logits.iter().map(|v| v - sum.ln()).collect()
}

/// Both perplexities and the divergence by their definitions, in f64, from whole models' logits.
fn evaluated_here(models: [&dyn Checkpoint; 2], windows: &TokenWindows) -> (f64, f64, f64) {
    let mut sums = [0.0; 3];
    for window in windows.iter() {
        let of = models.map(|model| logits(model, window));
        let vocabulary = of[0].len() / window.len();
        for (t, &target) in window[1..].iter().enumerate() {
            let [before, after] = [&of[0], &of[1]].map(|logits| log_softmax(&logits[t * vocabulary..][..vocabulary]));
            sums[0] -= before[target as usize];
            sums[1] -= after[target as usize];
            sums[2] += before.iter().zip(&after).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
        }
    }
    let predictions = (windows.len() * (windows.seq_len() - 1)) as f64;
    ((sums[0] / predictions).exp(), (sums[1] / predictions).exp(), sums[2] / predictions)
}

fn check_evaluation(found: &Evaluation, (float, quantized, divergence): (f64, f64, f64)) {
    let near = |found: f64, expected: f64| (found / expected - 1.0).abs() < 1e-4;
    assert!(near(found.float_perplexity, float), "{found:?}, expected {float}");
    assert!(near(found.perplexity, quantized), "{found:?}, expected {quantized}");
    assert!(near(found.divergence, divergence), "{found:?}, expected {divergence}");
}

#[test]
fn evaluation_matches_the_definitions() {
    let folder = tempfile::tempdir().unwrap();
    quantize(folder.path(), &Settings::new(Options::new(Grid { bits: 3, ..GRID })), &windows(20, 32, 1));
    let (source, quantized) = (tiny("llama"), SafetensorsCheckpoint::open(folder.path()).unwrap());
    // More rows than one block.
    let text = windows(3, 300, 9);
    let models: [&dyn Checkpoint; 2] = [&source, &quantized];
    let expected = evaluated_here(models, &text);
    assert!(expected.2 > 1e-3, "the models differ: {expected:?}");
    // Memory for all windows, and for less than one.
    for memory in [1 << 30, 0] {
        let found =
            block_on(evaluate(&mut CandleOps::default(), models, "text", &text, 0, Some(memory), &mut ())).unwrap();
        check_evaluation(&found, expected);
        assert_eq!((found.windows.len(), found.seq_len), (3, 300));
        let mean = found.windows.iter().map(|of| of[2]).sum::<f64>() / 3.0;
        assert!((mean / found.divergence - 1.0).abs() < 1e-12);
    }
    if let Some(gpu) = device() {
        let mut ops = GpuOps::new(gpu, KvDtype::F32);
        let found = block_on(evaluate(&mut ops, models, "text", &text, 0, Some(1 << 30), &mut ())).unwrap();
        check_evaluation(&found, expected);
    }
}

/// A report with HTML in every name.
fn report(folder: &Path) -> Report {
    let matrices = quantize(folder, &Settings::new(Options::new(GRID)), &windows(10, 16, 1));
    Report {
        program: "gptq-quant 0".into(),
        model: "<script>alert(1)</script> & \"more\"".into(),
        device: "the CPU".into(),
        settings: serde_json::json!({ "rule": "</pre><b>" }),
        sources: vec![("<i>text</i>".into(), 10)],
        seq_len: 16,
        prefix_tokens: vec!["<b>".into()],
        matrices: matrices.into_iter().map(|(_, _, report)| report).collect(),
        seconds: [("forward".to_owned(), 1.25)].into(),
        peak_memory: Some(3 << 29),
        evaluation: Some(Evaluation {
            text: "<b>".into(),
            basis: serde_json::Value::Null,
            seq_len: 16,
            float_perplexity: 20.0,
            perplexity: 22.0,
            divergence: 0.1,
            windows: vec![[3.0, 3.1, 0.1], [2.9, 3.05, 0.1]],
        }),
    }
}

#[test]
fn page_is_self_contained_and_escapes_names() {
    let folder = tempfile::tempdir().unwrap();
    let report = report(folder.path());
    let [(_, json), (_, page)] = report.files();
    let page = String::from_utf8(page).unwrap();
    for tag in ["<script", "<b>", "<i>", "href=", "src=", "url(", "@import"] {
        assert!(!page.contains(tag), "{tag} is in the page");
    }
    for text in
        ["model.layers.1.mlp.down_proj", "&lt;script&gt;", "4.500 bits per weight", "22.0000", "+10.00 %", "1.50 GiB"]
    {
        assert!(page.contains(text), "{text} is not in the page");
    }
    // Four kinds of matrices, scales, time, losses, divergence.
    assert_eq!(page.matches("<svg").count(), 8);
    let points = page.split("points=\"").skip(1).map(|rest| &rest[..rest.find('"').unwrap()]);
    let mut count = 0;
    for point in points.flat_map(str::split_whitespace) {
        let (x, y) = point.split_once(',').unwrap();
        let (x, y): (f64, f64) = (x.parse().unwrap(), y.parse().unwrap());
        assert!((0.0..=420.0).contains(&x) && (0.0..=200.0).contains(&y), "{point}");
        count += 1;
    }
    // Four kinds with two lines of two layers; two lines of scales and one of time over 8 matrices; two lines of losses and one of
    // divergence over two windows.
    assert_eq!(count, 4 * 2 * 2 + 2 * 8 + 8 + 2 * 2 + 2);
    assert_eq!(serde_json::from_slice::<Report>(&json).unwrap(), report);
}

#[test]
fn page_without_matrices_has_no_plots() {
    let folder = tempfile::tempdir().unwrap();
    let report = Report { matrices: Vec::new(), evaluation: None, peak_memory: None, ..report(folder.path()) };
    let [_, (_, page)] = report.files();
    assert!(!String::from_utf8(page).unwrap().contains("<svg"));
}

#[test]
fn the_program_reports_and_measures() {
    let folder = tempfile::tempdir().unwrap();
    let model = tiny_folder(folder.path());
    std::fs::write(folder.path().join("text.txt"), prose(1, 400)).unwrap();
    std::fs::write(folder.path().join("other.txt"), prose(2, 400)).unwrap();
    let output = |more: &[&str]| {
        let mut command = Command::cargo_bin("gptq-quant").unwrap();
        command.current_dir(folder.path()).args(["model", "-o", "out", "--calib", "text.txt", "--samples", "4"]);
        command.args(["--seq-len", "64", "--device", "cpu", "--group-size", "32"]).args(more);
        let output = command.env("HF_HUB_OFFLINE", "1").env("HF_HOME", folder.path().join("hub")).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap())
    };
    let run = |more: &[&str]| output(more)[0].clone();
    let stderr = |more: &[&str]| output(more)[1].clone();
    let out = folder.path().join("out");
    let stdout = run(&[]);
    assert!(!stdout.contains("perplexity"), "{stdout}");
    let report = Report::read(&out).unwrap().unwrap();
    assert_eq!((report.matrices.len(), report.evaluation), (8, None));
    assert_eq!((report.sources, report.seq_len), (vec![("text.txt".to_owned(), 4)], 64));
    assert!(report.seconds["total"] > 0.0);
    assert!(out.join("quantize_report.html").is_file());

    // An existing output is measured without quantizing again.
    let stdout = run(&["--eval", "other.txt", "--eval-windows", "2"]);
    assert!(stdout.contains("--restart makes it again") && stdout.contains("2 windows of 1024 tokens"), "{stdout}");
    let evaluation = Report::read(&out).unwrap().unwrap().evaluation.unwrap();
    let models: [&dyn Checkpoint; 2] = [&tiny("llama"), &SafetensorsCheckpoint::open(&out).unwrap()];
    let tokenizer = std::fs::read(model.join("tokenizer.json")).unwrap();
    let tokens = infer_core::Tokenizer::from_bytes(&tokenizer).unwrap().encode(&prose(2, 400)).unwrap();
    let text: Vec<Vec<u32>> = tokens.chunks_exact(1024).take(2).map(<[u32]>::to_vec).collect();
    check_evaluation(&evaluation, evaluated_here(models, &TokenWindows::from_windows(&text)));
    let page = std::fs::read_to_string(out.join("quantize_report.html")).unwrap();
    assert!(page.contains(&format!("{:.4}", evaluation.perplexity)));

    // Without changes, the stored evaluation is printed.
    let store = |perplexity: f64| {
        let mut report = Report::read(&out).unwrap().unwrap();
        report.evaluation.as_mut().unwrap().perplexity = perplexity;
        report.write(&out).unwrap();
    };
    let measured = || Report::read(&out).unwrap().unwrap().evaluation.unwrap();
    let eval = ["--eval", "other.txt", "--eval-windows", "2"];
    store(7.25);
    let stdout = run(&eval);
    assert!(stdout.contains("7.2500 quantized"), "{stdout}");
    assert_eq!(measured(), Evaluation { perplexity: 7.25, ..evaluation.clone() });

    // Another text with the same name and number of windows.
    std::fs::write(folder.path().join("other.txt"), prose(3, 400)).unwrap();
    run(&eval);
    let other = measured();
    assert_eq!((&other.text, other.windows.len()), (&evaluation.text, evaluation.windows.len()));
    assert!(other.perplexity != 7.25, "{other:?}");
    assert_ne!(other.windows, evaluation.windows);
    // The same text in the WikiText protocol.
    store(7.25);
    run(&[&eval[..], &["--eval-wikitext"]].concat());
    assert!(measured().perplexity != 7.25);
    // More windows; another algorithm; another quantized model.
    store(7.25);
    run(&["--eval", "other.txt", "--eval-windows", "3"]);
    assert_eq!(measured().windows.len(), 3);
    run(&eval);
    assert_eq!(measured(), other);
    let mut report = Report::read(&out).unwrap().unwrap();
    let evaluation = report.evaluation.as_mut().unwrap();
    evaluation.perplexity = 7.25;
    evaluation.basis["steps"]["evaluate"] = 0.into();
    report.write(&out).unwrap();
    assert!(stderr(&eval).contains("measuring again: `steps.evaluate` was 0"));
    assert_eq!(measured(), other);
    store(7.25);
    let config = std::fs::read_to_string(out.join("config.json")).unwrap();
    std::fs::write(out.join("config.json"), config.replace("\n", "\n ")).unwrap();
    assert!(stderr(&eval).contains("measuring again: `quantized.config`"));
    assert_eq!(measured().windows, other.windows);
}
