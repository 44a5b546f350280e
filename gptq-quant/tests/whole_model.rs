//! A tiny model to a GPTQ checkpoint and back: the checkpoint reads back unchanged, and its logits are closer to the float model
//! than with round-to-nearest.

mod common;

use std::{path::Path, time::Duration};

use gptq_quant::{
    CheckpointWriter, Error, Grid, HeadInputs, MatrixReport, Options, Progress, Quantized, SelfText, Settings, Store,
    TokenWeight,
    gptq::{Method, round_to_nearest},
    quantize_layers, write_windows,
};
use half::bf16;
use infer_core::{
    Decoder, KvPool, block_on, model::Sequence, model::load_checkpoint, ops::Backend, ops::candle::CandleOps,
};
use model_format::{
    Checkpoint, DecoderConfig, Dtype, HostTensor, Param, QuantFormat, Role, SafetensorsCheckpoint,
    checkpoint::{read_param, write_safetensors},
    gptq::GptqConfig,
    gptq::GptqMatrix,
    params,
    params::joined_params,
    quant::group_quant::Scales,
};
use ndarray::ArrayView2;

use common::{testdata, tiny, tiny_folder, windows};

const Q4F16_1: Grid = Grid { bits: 4, group_size: Some(32), sym: true };

/// The logits of windows outside calibration.
fn logits(checkpoint: &dyn Checkpoint) -> Vec<f32> {
    let config = DecoderConfig::from_hf(checkpoint.config_json()).unwrap();
    let mut ops = CandleOps::default();
    let parts = load_checkpoint(&mut ops, &config, checkpoint, None, &mut ()).unwrap();
    let decoder = Decoder::new(&mut ops, &config, parts, 64).unwrap();
    let mut all = Vec::new();
    for tokens in windows(6, 64, 99).iter() {
        let (mut pool, mut cache) = KvPool::with_cache(&mut ops, &config, 64).unwrap();
        let hidden = decoder.hidden(&mut ops, &mut pool, &mut [Sequence { tokens, cache: &mut cache }]);
        let logits = decoder.head(&mut ops, &hidden);
        all.extend(block_on(ops.read(&logits)).unwrap());
    }
    all
}

fn mean_square_difference(a: &[f32], b: &[f32]) -> f64 {
    let sum: f64 = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    sum / a.len() as f64
}

/// The reports of a run.
#[derive(Default)]
struct Reports {
    matrices: Vec<MatrixReport>,
    fractions: Vec<f64>,
    cancel_at: Option<usize>,
}

impl Progress for Reports {
    fn wrote(&mut self, _done: usize, _total: usize) {}

    fn advanced(&mut self, _layer: usize, _module: &str, fraction: f64, _left: Option<Duration>) {
        self.fractions.push(fraction);
    }

    fn quantized(&mut self, report: &MatrixReport) {
        self.matrices.push(report.clone());
    }

    fn is_cancelled(&self) -> bool {
        self.cancel_at.is_some_and(|matrices| self.matrices.len() >= matrices)
    }
}

/// A placeholder report.
fn report() -> MatrixReport {
    MatrixReport {
        layer: None,
        module: "model".into(),
        shape: [1, 1],
        bits: 4,
        group_size: None,
        sym: true,
        relative_error: 0.0,
        nearest_error: 0.0,
        loss: None,
        method: Method::RoundToNearest,
        scales: [1.0; 2],
        elapsed: Duration::ZERO,
    }
}

/// The tiny Llama that AutoGPTQ quantized. Its embeddings lie near a plane and three channels are large, so its inputs are correlated
/// like those of real models.
fn structured() -> SafetensorsCheckpoint {
    SafetensorsCheckpoint::open(&testdata("autogptq/source")).unwrap()
}

/// The tiny model of an architecture, with embeddings of the same structure, in `folder`.
fn structured_like(arch: &str, folder: &Path) -> SafetensorsCheckpoint {
    let source = tiny(arch);
    let mut state = 7u64;
    // Sums of four numbers in [-1, 1).
    let mut number = || -> f32 {
        let mut one = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        };
        one() + one() + one() + one()
    };
    let tensors: Vec<(String, HostTensor<'static>)> = source
        .tensors()
        .iter()
        .map(|info| {
            let tensor = source.tensor(&info.name).unwrap();
            let mut bytes = tensor.bytes.to_vec();
            if info.name.ends_with("embed_tokens.weight") {
                let (rows, cols) = (info.shape[0], info.shape[1]);
                let values = tensor.to_f32();
                let size = (values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32).sqrt();
                let plane: Vec<f32> = (0..12 * cols).map(|_| number()).collect();
                for row in 0..rows {
                    let at: Vec<f32> = (0..12).map(|_| number()).collect();
                    for col in 0..cols {
                        let sum: f32 = at.iter().zip(plane[col..].iter().step_by(cols)).map(|(a, p)| a * p).sum();
                        let factor = if [5, 40, 90].contains(&col) { 8.0 } else { 1.0 };
                        let value = (0.75 * sum / 12f32.sqrt() + 0.1 * number()) * size * factor;
                        let bits = bf16::from_f32(value).to_le_bytes();
                        bytes[2 * (row * cols + col)..][..2].copy_from_slice(&bits);
                    }
                }
            }
            (info.name.clone(), HostTensor { dtype: tensor.dtype, shape: tensor.shape, bytes: bytes.into() })
        })
        .collect();
    write_safetensors(&folder.join("model.safetensors"), tensors).unwrap();
    std::fs::write(folder.join("config.json"), source.config_json()).unwrap();
    SafetensorsCheckpoint::open(folder).unwrap()
}

/// The recorded mean square logit error of AutoGPTQ in a case.
fn autogptq_error(case: &str) -> f64 {
    let report = std::fs::read(testdata("autogptq/report.json")).unwrap();
    let report: serde_json::Value = serde_json::from_slice(&report).unwrap();
    report["cases"][case]["mean_square_logit_error"].as_f64().unwrap()
}

/// A checkpoint of AutoGPTQ, of the same model and windows, gives the logits that transformers computes with it.
#[test]
fn autogptq_checkpoint_gives_its_recorded_logits() {
    for case in ["actorder-sym-g64", "static-actorder-sym-g32"] {
        let folder = testdata(&format!("autogptq/{case}"));
        let found = logits(&SafetensorsCheckpoint::open(&folder).unwrap());
        let bytes = std::fs::read(folder.join("expected.safetensors")).unwrap();
        let (header, data) = bytes[8..].split_at(u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize);
        let header: serde_json::Value = serde_json::from_slice(header).unwrap();
        let begin = header["logits"]["data_offsets"][0].as_u64().unwrap() as usize;
        let expected: Vec<f32> =
            data[begin..][..4 * 512].chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        let power = expected.iter().map(|v| f64::from(v * v)).sum::<f64>() / 512.0;
        let error = mean_square_difference(&found[found.len() - 512..], &expected) / power;
        assert!(error < 1e-6, "{case}: {error:e}");
        let from_float = mean_square_difference(&found, &logits(&structured()));
        assert!((from_float / autogptq_error(case) - 1.0).abs() < 0.01, "{case}: {from_float}");
    }
}

/// Quantizes the tiny model into `folder`.
fn run(folder: &Path, settings: &Settings, reports: &mut Reports) -> Result<Vec<Quantized>, Error> {
    run_on(tiny("llama"), folder, settings, reports)
}

fn run_on(
    checkpoint: SafetensorsCheckpoint,
    folder: &Path,
    settings: &Settings,
    reports: &mut Reports,
) -> Result<Vec<Quantized>, Error> {
    let mut writer = CheckpointWriter::create(&checkpoint, folder, settings)?;
    let mut matrices = Vec::new();
    let mut add = |param: &_, quantized: &Quantized| {
        matrices.push(quantized.clone());
        writer.add(param, quantized, &report())
    };
    // With 40 tokens per window, the last batch is smaller.
    block_on(quantize_layers(CandleOps::default(), &checkpoint, &windows(60, 40, 1), settings, reports, &mut add))?;
    writer.finish()?;
    Ok(matrices)
}

/// Checks the logit error of GPTQ: below `ratio` times round-to-nearest on the same grid, and near AutoGPTQ's error in the case
/// `autogptq`, if any.
fn check(options: Options, ratio: f64, autogptq: Option<&str>) {
    let folder = tempfile::tempdir().unwrap();
    let mut reports = Reports::default();
    let matrices = run_on(structured(), &folder.path().join("gptq"), &Settings::new(options), &mut reports).unwrap();

    assert_eq!(reports.matrices.len(), 8);
    for report in &reports.matrices {
        assert!(matches!(report.method, Method::Gptq { .. }), "{report:?}");
        assert!(report.relative_error > 0.0 && report.relative_error < 0.05, "{report:?}");
    }
    assert!(reports.fractions.is_sorted(), "{:?}", reports.fractions);
    // The last layer's outputs are not computed.
    assert!((0.7..=1.0).contains(reports.fractions.last().unwrap()), "{:?}", reports.fractions);

    // The checkpoint reads back unchanged.
    let written = SafetensorsCheckpoint::open(&folder.path().join("gptq")).unwrap();
    let config = GptqConfig::from_config(written.config_json()).unwrap().expect("a quantization_config");
    let decoder = DecoderConfig::from_hf(written.config_json()).unwrap();
    assert_eq!(config, Settings::new(options).gptq_config(&decoder).unwrap());
    let list = params(&decoder);
    let layer_matrices: Vec<_> = list.iter().filter(|param| param.role.is_layer_matrix()).collect();
    assert_eq!(layer_matrices.len(), matrices.len());
    for (param, quantized) in layer_matrices.iter().zip(&matrices) {
        assert_eq!(
            read_param(&written, param).unwrap(),
            quantized.dequantize().into_raw_vec_and_offset().0,
            "{}",
            param.name
        );
        for part in &param.sources {
            assert!(written.info(&part.name).is_none());
            let g_idx = written.info(&format!("{}.g_idx", part.module())).unwrap();
            assert_eq!(g_idx.dtype, Dtype::I32);
        }
    }
    for name in ["model.embed_tokens.weight", "model.norm.weight"] {
        assert_eq!(written.info(name).unwrap().dtype, Dtype::F16, "{name}");
    }
    let quantize_config = std::fs::read(folder.path().join("gptq/quantize_config.json")).unwrap();
    let quantize_config: serde_json::Value = serde_json::from_slice(&quantize_config).unwrap();
    let whole: serde_json::Value = serde_json::from_str(written.config_json()).unwrap();
    assert_eq!(whole["quantization_config"], quantize_config);
    assert_eq!(whole["torch_dtype"], "float16");

    // Closer to the float model than rounding, on text outside calibration.
    let source = structured();
    let nearest = folder.path().join("nearest");
    let mut writer = CheckpointWriter::create(&source, &nearest, &Settings::new(options)).unwrap();
    for (param, quantized) in layer_matrices.iter().zip(&matrices) {
        let values = read_param(&source, param).unwrap();
        let weights = ArrayView2::from_shape((param.shape[0], param.shape[1]), &values).unwrap();
        let rounded = round_to_nearest(weights, None, &options);
        assert_ne!(rounded.codes, quantized.codes, "{}", param.name);
        writer.add(param, &rounded, &report()).unwrap();
    }
    writer.finish().unwrap();
    let original = logits(&source);
    let gptq = mean_square_difference(&logits(&written), &original);
    let rounded = mean_square_difference(&logits(&SafetensorsCheckpoint::open(&nearest).unwrap()), &original);
    println!("{options:?}: logit error {gptq:.5}, round-to-nearest {rounded:.5}");
    assert!(gptq < ratio * rounded, "{gptq} and {rounded}");
    if let Some(case) = autogptq {
        let theirs = autogptq_error(case);
        assert!(gptq < 1.02 * theirs, "{gptq}, AutoGPTQ {theirs}");
    }
}

#[test]
fn the_q4f16_1_grid() {
    check(Options::new(Q4F16_1), 0.25, Some("static-actorder-sym-g32"));
}

#[test]
fn the_q4f16_1_grid_with_gptaq() {
    check(Options { gptaq_alpha: 0.5, ..Options::new(Q4F16_1) }, 0.25, Some("static-actorder-sym-g32"));
}

#[test]
fn asymmetric_groups_of_64_without_act_order() {
    let grid = Grid { bits: 4, group_size: Some(64), sym: false };
    check(Options { act_order: false, ..Options::new(grid) }, 0.4, None);
}

#[test]
fn eight_bits_and_shuffled_groups() {
    let grid = Grid { bits: 8, group_size: Some(64), sym: true };
    check(Options { static_groups: false, ..Options::new(grid) }, 0.4, None);
}

/// The walk must run every part of every architecture. Without one, the calibration inputs of a matrix would be wrong.
#[test]
fn every_architecture_beats_round_to_nearest() {
    for arch in ["mistral", "qwen2", "qwen3", "phi3", "phi3-longrope", "gemma2", "gemma3"] {
        let folder = tempfile::tempdir().unwrap();
        let options = Options::new(Q4F16_1);
        let (with_gptq, nearest) = (folder.path().join("gptq"), folder.path().join("nearest"));
        let source = structured_like(arch, folder.path());
        run_on(source, &with_gptq, &Settings::new(options), &mut Reports::default()).unwrap();

        let source = SafetensorsCheckpoint::open(folder.path()).unwrap();
        let mut writer = CheckpointWriter::create(&source, &nearest, &Settings::new(options)).unwrap();
        let decoder = DecoderConfig::from_hf(source.config_json()).unwrap();
        for param in joined_params(&decoder).iter().filter(|param| param.role.is_layer_matrix()) {
            let values = read_param(&source, param).unwrap();
            let weights = ArrayView2::from_shape((param.shape[0], param.shape[1]), &values).unwrap();
            writer.add(param, &round_to_nearest(weights, None, &options), &report()).unwrap();
        }
        writer.finish().unwrap();
        let original = logits(&source);
        let error =
            |folder: &Path| mean_square_difference(&logits(&SafetensorsCheckpoint::open(folder).unwrap()), &original);
        let (gptq, rounded) = (error(&with_gptq), error(&nearest));
        println!("{arch}: logit error {gptq:.5}, round-to-nearest {rounded:.5}");
        assert!(gptq < 0.5 * rounded, "{arch}: {gptq} and {rounded}");
    }
}

#[test]
fn the_q4f16_1_grid_converts_without_loss() {
    let folder = tempfile::tempdir().unwrap();
    run(folder.path(), &Settings::new(Options::new(Q4F16_1)), &mut Reports::default()).unwrap();
    let written = SafetensorsCheckpoint::open(folder.path()).unwrap();
    let config = GptqConfig::from_config(written.config_json()).unwrap().unwrap();
    let format = QuantFormat::by_name("q4f16_1").unwrap();
    let mut negative_scales = 0;
    for param in params(&DecoderConfig::from_hf(written.config_json()).unwrap()) {
        for part in param.sources.iter().filter(|_| param.role.is_layer_matrix()) {
            let matrix = GptqMatrix::read(&written, &config, part.module()).unwrap().unwrap();
            let converted = matrix.to_format(format, part.module()).unwrap();
            assert_eq!(converted.dequantize(), matrix.dequantize(), "{}", part.name);
            negative_scales += matrix.scales.iter().filter(|scale| scale.is_sign_negative()).count();
        }
    }
    assert!(negative_scales > 0, "negative scales use the sixteenth code on the positive side");
}

#[test]
fn memory_limit_does_not_change_the_result() {
    let folder = tempfile::tempdir().unwrap();
    let settings = Settings::new(Options::new(Q4F16_1));
    let kept = run(&folder.path().join("a"), &settings, &mut Reports::default()).unwrap();
    let settings = Settings { activation_memory: Some(0), ..settings.clone() };
    let again = run(&folder.path().join("b"), &settings, &mut Reports::default()).unwrap();
    assert_eq!(kept, again);
}

#[test]
fn interrupted_run_without_a_journal_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let mut reports = Reports { cancel_at: Some(5), ..Reports::default() };
    let error = run(&out, &Settings::new(Options::new(Q4F16_1)), &mut reports).unwrap_err();
    assert!(matches!(error, Error::Cancelled), "{error}");
    assert!(!out.exists());
}

#[test]
fn interrupted_run_keeps_the_older_output() {
    let folder = tempfile::tempdir().unwrap();
    let settings = Settings::new(Options::new(Q4F16_1));
    run(folder.path(), &settings, &mut Reports::default()).unwrap();
    let before = std::fs::read(folder.path().join("model.safetensors")).unwrap();
    let files = || std::fs::read_dir(folder.path()).unwrap().count();
    let count = files();
    let mut reports = Reports { cancel_at: Some(1), ..Reports::default() };
    run(folder.path(), &settings, &mut reports).unwrap_err();
    assert_eq!(files(), count);
    assert_eq!(std::fs::read(folder.path().join("model.safetensors")).unwrap(), before);
    // A complete run replaces it.
    run(folder.path(), &settings, &mut Reports::default()).unwrap();
    assert_eq!(files(), count);
}

#[test]
fn unquantized_model_is_not_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(testdata("arch/llama/hf/config.json"), folder.path().join("config.json")).unwrap();
    let error = run(folder.path(), &Settings::new(Options::new(Q4F16_1)), &mut Reports::default()).unwrap_err();
    assert!(matches!(error, Error::OutputExists { .. }), "{error}");
}

#[test]
fn seed_determines_the_written_text() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = SafetensorsCheckpoint::open(&tiny_folder(folder.path())).unwrap();
    let write = |seed| {
        let mut none = |_: &_, _: &_| Ok(());
        let text = SelfText { samples: 5, seq_len: 24, prefix: &[], seed, temperature: 1.0, random: 0.0, head: None };
        block_on(write_windows(CandleOps::default(), &checkpoint, text, &mut (), &mut none)).unwrap()
    };
    let first = write(1);
    assert_eq!((first.len(), first.seq_len()), (5, 24));
    assert_eq!(first, write(1));
    assert_ne!(first, write(2));
    let distinct: std::collections::HashSet<&[u32]> = first.iter().collect();
    assert_eq!(distinct.len(), 5, "no two windows are the same");
}

/// Records the sums of the head's inputs.
struct Seen(Vec<HeadInputs>);

impl Store for Seen {
    fn add(&mut self, _: &Param, _: &Quantized, _: &MatrixReport) -> Result<(), Error> {
        panic!("nothing is solved");
    }

    fn add_text(&mut self, _: &[Vec<u32>], head: Option<&HeadInputs>) -> Result<(), Error> {
        self.0.extend(head.cloned());
        Ok(())
    }
}

/// Sums collected while the text is written equal those of a forward pass over the finished text.
#[test]
fn written_text_gives_the_head_inputs() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = SafetensorsCheckpoint::open(&tiny_folder(folder.path())).unwrap();
    let (mut seen, weight) = (Seen(Vec::new()), TokenWeight { equal_norm: false, first_token: 0.2 });
    // A fifth of the windows is random tokens.
    let text =
        SelfText { samples: 70, seq_len: 24, prefix: &[], seed: 3, temperature: 1.0, random: 0.2, head: Some(weight) };
    let written = block_on(write_windows(CandleOps::default(), &checkpoint, text, &mut (), &mut seen)).unwrap();
    assert_eq!(seen.0.len(), 2, "batches of 64");

    let config = DecoderConfig::from_hf(checkpoint.config_json()).unwrap();
    let mut ops = CandleOps::default();
    let parts = load_checkpoint(&mut ops, &config, &checkpoint, None, &mut ()).unwrap();
    let decoder = Decoder::new(&mut ops, &config, parts, 24).unwrap();
    let inputs: Vec<Vec<f32>> = written
        .iter()
        .map(|window| {
            let (_, tokens) = window.split_last().unwrap();
            let (mut pool, mut cache) = KvPool::with_cache(&mut ops, &config, 24).unwrap();
            let hidden = decoder.hidden(&mut ops, &mut pool, &mut [Sequence { tokens, cache: &mut cache }]);
            block_on(ops.read(&hidden)).unwrap()
        })
        .collect();
    let expected = HeadInputs::joined(&[HeadInputs::of(&inputs, config.hidden_size, weight)], 70, config.hidden_size);
    let found = HeadInputs::joined(&seen.0, 70, config.hidden_size).unwrap().products;
    let expected = expected.unwrap().products;
    assert!((&found - &expected).norm_l2() < 1e-5 * expected.norm_l2());
}

/// The f16 values of the table in the checkpoint convert into codes without loss.
#[test]
fn embedding_table_converts_without_loss() {
    let folder = tempfile::tempdir().unwrap();
    let settings = Settings { quantize_ends: true, ..Settings::new(Options::new(Q4F16_1)) };
    let mut reports = Reports::default();
    let matrices = run(folder.path(), &settings, &mut reports).unwrap();
    assert!(reports.fractions.is_sorted(), "{:?}", reports.fractions);
    assert_eq!(reports.matrices.iter().filter(|report| report.layer.is_none()).count(), 1);
    let written = SafetensorsCheckpoint::open(folder.path()).unwrap();
    let list = params(&DecoderConfig::from_hf(written.config_json()).unwrap());
    let table = list.iter().find(|param| param.role == Role::Embedding).unwrap();
    let values = read_param(&written, table).unwrap();
    assert_eq!(values, matrices[0].dequantize().into_raw_vec_and_offset().0);
    assert_ne!(values, read_param(&tiny("llama"), table).unwrap());

    let (rows, cols) = (table.shape[0], table.shape[1]);
    let group = QuantFormat::by_name("q4f16_1").unwrap().group().unwrap();
    let (mut words, mut scales) = (vec![0; rows * group.row_words(cols)], vec![0; rows * group.groups(cols)]);
    assert_eq!(group.requantize_into(cols, &values, &mut words, &mut scales), 0, "groups that were rounded");
    let scales = Scales { dtype: Dtype::F16, bits: scales };
    assert_eq!(group.dequantize(rows, cols, &words, &scales), values);
}
