//! Checkpoints of `gptq-quant`, read by this project's readers: every width and version, rules, quantized heads, and conversion
//! by `weight-convert`.

mod common;

use std::path::Path;

use assert_cmd::Command;
use gptq_quant::{CheckpointWriter, Error, Grid, MatrixReport, Options, Quantized, Settings, Store, quantize_layers};
use infer_core::{
    Decoder, KvPool, block_on,
    model::{Parts, Sequence, load_checkpoint, load_mlc},
    ops::{Backend, candle::CandleOps},
};
use model_format::{
    Checkpoint, DecoderConfig, DirFiles, Dtype, HostTensor, Param, QuantFormat, Role, SafetensorsCheckpoint,
    checkpoint::{read_param, write_safetensors},
    gptq::{GptqConfig, GptqMatrix, Rule, Rules},
    params::joined_params,
};
use weight_convert::{WeightOptions, convert_weight};

use common::{tiny, tiny_folder, windows};

const FOUR_BITS: Grid = Grid { bits: 4, group_size: Some(32), sym: true };

fn config_of(checkpoint: &dyn Checkpoint) -> DecoderConfig {
    DecoderConfig::from_hf(checkpoint.config_json()).unwrap()
}

/// A checkpoint being written, with every matrix that it received.
struct Recorded<'a> {
    writer: CheckpointWriter<'a>,
    matrices: Vec<(Param, Quantized)>,
}

impl Store for Recorded<'_> {
    fn add(&mut self, param: &Param, quantized: &Quantized, report: &MatrixReport) -> Result<(), Error> {
        self.matrices.push((param.clone(), quantized.clone()));
        self.writer.add(param, quantized, report)
    }
}

/// Quantizes into `folder`.
fn quantize(
    source: &SafetensorsCheckpoint,
    folder: &Path,
    settings: &Settings,
) -> Result<Vec<(Param, Quantized)>, Error> {
    let writer = CheckpointWriter::create(source, folder, settings)?;
    let mut store = Recorded { writer, matrices: Vec::new() };
    block_on(quantize_layers(CandleOps::default(), source, &windows(8, 32, 7), settings, &mut (), &mut store))?;
    store.writer.finish()?;
    Ok(store.matrices)
}

fn with_rules(grid: Grid, rules: &[&str]) -> Settings {
    let rules = rules.iter().map(|rule| Rule::parse(rule).unwrap()).collect();
    Settings { rules: Rules(rules), ..Settings::new(Options::new(grid)) }
}

/// The logits after each token of the first window.
fn logits(config: &DecoderConfig, load: impl FnOnce(&mut CandleOps) -> Parts<CandleOps>) -> Vec<f32> {
    let mut ops = CandleOps::default();
    let parts = load(&mut ops);
    let decoder = Decoder::new(&mut ops, config, parts, 32).unwrap();
    let (mut pool, mut cache) = KvPool::with_cache(&mut ops, config, 32).unwrap();
    let windows = windows(8, 32, 7);
    let tokens = windows.iter().next().unwrap();
    let hidden = decoder.hidden(&mut ops, &mut pool, &mut [Sequence { tokens, cache: &mut cache }]);
    let logits = decoder.head(&mut ops, &hidden);
    block_on(ops.read(&logits)).unwrap()
}

fn checkpoint_logits(checkpoint: &dyn Checkpoint) -> Vec<f32> {
    let config = config_of(checkpoint);
    logits(&config, |ops| load_checkpoint(ops, &config, checkpoint, None, &mut ()).unwrap())
}

fn relative_difference(a: &[f32], b: &[f32]) -> f64 {
    let square = |of: &mut dyn Iterator<Item = f32>| of.map(|v| f64::from(v).powi(2)).sum::<f64>();
    (square(&mut a.iter().zip(b).map(|(a, b)| a - b)) / square(&mut b.iter().copied())).sqrt()
}

/// The source with dequantized matrices in f32, which needs no GPTQ reader.
fn dequantized(
    source: &SafetensorsCheckpoint,
    matrices: &[(Param, Quantized)],
    folder: &Path,
) -> SafetensorsCheckpoint {
    let mut tensors: Vec<(String, HostTensor<'static>)> = Vec::new();
    let mut add = |name: &str, shape: Vec<usize>, values: &[f32]| {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        tensors.push((name.to_owned(), HostTensor { dtype: Dtype::F32, shape, bytes: bytes.into() }));
    };
    let mut replaced = Vec::new();
    for (param, quantized) in matrices {
        let values = quantized.dequantize().into_raw_vec_and_offset().0;
        let mut rest = &values[..];
        for part in &param.sources {
            let (own, behind) = rest.split_at(part.rows * param.shape[1]);
            add(&part.name, vec![part.rows, param.shape[1]], own);
            replaced.push(part.name.clone());
            rest = behind;
        }
    }
    for info in source.tensors().iter().filter(|info| !replaced.contains(&info.name)) {
        // Quantized checkpoints store f16.
        let values: Vec<f32> = source.tensor(&info.name).unwrap().to_f32();
        let values: Vec<f32> = values.into_iter().map(|v| half::f16::from_f32(v).to_f32()).collect();
        add(&info.name, info.shape.clone(), &values);
    }
    std::fs::create_dir_all(folder).unwrap();
    std::fs::write(folder.join("config.json"), source.config_json()).unwrap();
    write_safetensors(&folder.join("model.safetensors"), tensors).unwrap();
    SafetensorsCheckpoint::open(folder).unwrap()
}

/// Quantizes. The reader must return the same codes, and the engine must run them.
fn check(arch: &str, settings: &Settings) {
    let folder = tempfile::tempdir().unwrap();
    let source = tiny(arch);
    let out = folder.path().join("out");
    let matrices = quantize(&source, &out, settings).unwrap();
    let written = SafetensorsCheckpoint::open(&out).unwrap();
    let gptq = GptqConfig::from_config(written.config_json()).unwrap().unwrap();
    assert_eq!(gptq.v2, settings.v2);
    for (param, quantized) in &matrices {
        let mut start = 0;
        for part in &param.sources {
            let matrix = GptqMatrix::read(&written, &gptq, part.module()).unwrap().expect("a quantized module");
            assert_eq!(matrix, quantized.rows_to_checkpoint(start, part.rows), "{}", part.name);
            assert!(written.info(&part.name).is_none(), "{}", part.name);
            let largest = matrix.codes.iter().max().unwrap();
            assert_eq!(*largest, ((1u32 << quantized.grid.bits) - 1) as u8, "{}: all bits are used", part.name);
            start += part.rows;
        }
    }
    let float = dequantized(&source, &matrices, &folder.path().join("float"));
    assert_eq!(checkpoint_logits(&written), checkpoint_logits(&float), "{settings:?}");
    assert!(relative_difference(&checkpoint_logits(&written), &checkpoint_logits(&source)) > 1e-4);
}

#[test]
fn every_width_and_version_reads_back_unchanged() {
    for bits in [2, 3, 4, 8] {
        for v2 in [false, true] {
            for (sym, static_groups) in [(true, true), (false, false)] {
                let options = Options { static_groups, ..Options::new(Grid { bits, sym, ..FOUR_BITS }) };
                check("llama", &Settings { v2, ..Settings::new(options) });
            }
        }
    }
}

#[test]
fn whole_row_groups_and_shorter_last_groups() {
    for group_size in [None, Some(96), Some(4096)] {
        check("llama", &Settings::new(Options::new(Grid { group_size, ..FOUR_BITS })));
    }
}

#[test]
fn quantized_heads() {
    for arch in ["mistral", "phi3"] {
        let settings = Settings { lm_head: true, ..with_rules(FOUR_BITS, &["lm_head:bits=8,group=64"]) };
        check(arch, &settings);
    }
    let error = quantize(
        &tiny("llama"),
        Path::new("nowhere"),
        &Settings { lm_head: true, ..Settings::new(Options::new(FOUR_BITS)) },
    );
    assert!(matches!(error, Err(Error::TiedHead { .. })));
}

#[test]
fn rules_apply_and_skipped_matrices_keep_their_values() {
    let folder = tempfile::tempdir().unwrap();
    let rules = [
        r"model\.layers\.1\.self_attn\.o_proj:skip",
        r".*\.self_attn\.(q|k|v)_proj:bits=8,group=64,sym=false",
        r".*\.1\.mlp\.(gate|up):skip",
        r"model\.layers\.1:bits=2,group=-1",
    ];
    let settings = with_rules(FOUR_BITS, &rules);
    let source = tiny("llama");
    let matrices = quantize(&source, folder.path(), &settings).unwrap();
    let written = SafetensorsCheckpoint::open(folder.path()).unwrap();
    let gptq = GptqConfig::from_config(written.config_json()).unwrap().unwrap();

    let grid = |bits, group_size, sym| Some(Grid { bits, group_size, sym });
    let expected = [
        [grid(8, Some(64), false), Some(FOUR_BITS), Some(FOUR_BITS), Some(FOUR_BITS)],
        [grid(8, Some(64), false), None, None, grid(2, None, true)],
    ];
    let mut reported = matrices.iter();
    for (layer, expected) in expected.iter().enumerate() {
        let roles = [Role::Qkv(layer), Role::AttentionOut(layer), Role::GateUp(layer), Role::Down(layer)];
        for (role, expected) in roles.into_iter().zip(expected) {
            let list = joined_params(&config_of(&source));
            let param = list.iter().find(|param| param.role == role).unwrap();
            match expected {
                Some(grid) => {
                    let (found, quantized) = reported.next().unwrap();
                    assert_eq!((&found.name, quantized.grid), (&param.name, *grid));
                    let values = quantized.dequantize().into_raw_vec_and_offset().0;
                    assert_eq!(read_param(&written, param).unwrap(), values, "{}", param.name);
                }
                None => {
                    for part in &param.sources {
                        assert!(GptqMatrix::read(&written, &gptq, part.module()).unwrap().is_none());
                        let (tensor, float) = (written.tensor(&part.name).unwrap(), source.tensor(&part.name).unwrap());
                        assert_eq!(tensor.dtype, Dtype::F16);
                        let rounded = float.to_f32().into_iter().map(|v| half::f16::from_f32(v).to_f32());
                        assert!(tensor.to_f32().into_iter().eq(rounded), "{}", part.name);
                    }
                }
            }
        }
    }
    assert!(reported.next().is_none());

    // Each module has a rule by its whole name, and by vLLM's name of the joined matrix.
    let config: serde_json::Value = serde_json::from_str(written.config_json()).unwrap();
    let dynamic = config["quantization_config"]["dynamic"].as_object().unwrap();
    let skipped: Vec<_> = dynamic.keys().filter_map(|key| key.strip_prefix("-:")).collect();
    assert_eq!(
        skipped,
        [
            r"^model\.layers\.1\.self_attn\.o_proj$",
            r"^model\.layers\.1\.mlp\.gate_proj$",
            r"^model\.layers\.1\.mlp\.up_proj$",
            r"^model\.layers\.1\.mlp\.gate_up_proj$"
        ]
    );
    let joined = &dynamic[r"+:^model\.layers\.0\.self_attn\.qkv_proj$"];
    assert_eq!(joined, &serde_json::json!({ "bits": 8, "group_size": 64, "sym": false }));
    let down = &dynamic[r"+:^model\.layers\.1\.mlp\.down_proj$"];
    assert_eq!(down, &serde_json::json!({ "bits": 2, "group_size": -1 }));
}

fn run(folder: &Path, args: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::cargo_bin("gptq-quant").unwrap();
    command.current_dir(folder).args(["model", "-o", "out", "--samples", "2", "--seq-len", "16", "--device", "cpu"]);
    let output = command.args(args).env("HF_HUB_OFFLINE", "1").env("HF_HOME", folder.join("hub")).output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn bad_rules_fail_before_the_work() {
    let folder = tempfile::tempdir().unwrap();
    tiny_folder(folder.path());
    // Malformed rules are usage errors.
    for (rule, word) in [
        ("no-settings", "no `:`"),
        ("(:skip", "Parsing error"),
        ("a:bits=5", "`5` cannot be the value of `bits`"),
        ("a:bits=", "cannot be the value of `bits`"),
        ("a:group=0", "cannot be the value of `group`"),
        ("a:group=-2", "cannot be the value of `group`"),
        ("a:sym=maybe", "cannot be the value of `sym`"),
        ("a:width=8", "`width=8` is not"),
        ("a:", "`` is not"),
    ] {
        let (code, stderr) = run(folder.path(), &["--override", rule]);
        assert_eq!(code, Some(2), "{rule}: {stderr}");
        assert!(stderr.contains(word), "`{word}` is not in: {stderr}");
    }
    for (args, words) in [
        (
            &["--override", r".*\.q_proj:skip"][..],
            &["q_proj`, `", "different options", "matches all of them or none"][..],
        ),
        (&["--override", r".*\.up_proj:bits=8"], &["model.layers.0.mlp.gate_proj`, `model.layers.0.mlp.up_proj"]),
        (&["--override", r"model\.layers\.7\.:skip"], &[r"`model\.layers\.7\.:skip` matches no matrix"]),
        (&["--override", "(a+)+$:skip"], &["matches no matrix"]),
        (&["--lm-head"], &["no head of its own", "leave --lm-head out"]),
        (&["--override", r".*\.o_proj:bits=8", "--grid", "q4f16_1", "--to-mlc", "mlc"], &["o_proj", "q4f16_1"]),
    ] {
        let (code, stderr) = run(folder.path(), args);
        assert_eq!(code, Some(1), "{args:?}: {stderr}");
        for word in words {
            assert!(stderr.contains(word), "`{word}` is not in: {stderr}");
        }
        assert!(!stderr.contains("calibrating"), "{stderr}");
        assert!(!folder.path().join("out").exists() && !folder.path().join("mlc").exists());
    }
}

#[test]
fn shapes_that_fill_no_words_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let source = tiny("llama");
    // 248 codes of 8 or 4 bits fill whole words, codes of 2 or 3 bits do not.
    let mut config: serde_json::Value = serde_json::from_str(source.config_json()).unwrap();
    config["intermediate_size"] = 248.into();
    let mut tensors = Vec::new();
    for info in source.tensors() {
        let tensor = source.tensor(&info.name).unwrap();
        let (rows, cols) = (info.shape[0], info.shape.get(1).copied().unwrap_or(1));
        let size = tensor.bytes.len() / (rows * cols);
        let cut = |n: usize| if n == 256 { 248 } else { n };
        let kept: Vec<u8> = tensor
            .bytes
            .chunks_exact(cols * size)
            .take(cut(rows))
            .flat_map(|row| &row[..cut(cols) * size])
            .copied()
            .collect();
        let shape = info.shape.iter().map(|&n| cut(n)).collect();
        tensors.push((info.name.clone(), HostTensor { dtype: tensor.dtype, shape, bytes: kept.into() }));
    }
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    write_safetensors(&folder.path().join("model.safetensors"), tensors).unwrap();
    let cut = SafetensorsCheckpoint::open(folder.path()).unwrap();

    let out = folder.path().join("out");
    let error = quantize(&cut, &out, &Settings::new(Options::new(Grid { bits: 3, ..FOUR_BITS }))).unwrap_err();
    let message = error.to_string();
    assert!(message.contains("gate_proj` is [248, 128], but packed codes need multiples of 32"), "{message}");
    assert!(error.hint().unwrap().contains("--override 'model.layers.0.mlp.gate_proj:skip'"));
    assert!(!out.exists());
    for bits in [2, 4, 8] {
        let result = quantize(&cut, &out, &Settings::new(Options::new(Grid { bits, ..FOUR_BITS })));
        assert_eq!(result.is_ok(), bits != 2, "{bits} bits");
    }
    let skip = with_rules(Grid { bits: 3, ..FOUR_BITS }, &[r".*\.mlp\.:skip"]);
    assert_eq!(quantize(&cut, &out, &skip).unwrap().len(), 4);
}

#[test]
fn a_checkpoint_with_rules_converts() {
    let folder = tempfile::tempdir().unwrap();
    let (out, mlc) = (folder.path().join("out"), folder.path().join("mlc"));
    let rules = [r".*\.0\.mlp\.down:group=64", r".*\.1\.mlp\.down:bits=3"];
    let settings = Settings { quantize_ends: true, ..with_rules(FOUR_BITS, &rules) };
    quantize(&tiny("llama"), &out, &settings).unwrap();
    let written = SafetensorsCheckpoint::open(&out).unwrap();
    let format = QuantFormat::by_name("q4f16_1").unwrap();
    let report = convert_weight(&written, format, &WeightOptions::default(), &mlc, &mut ()).unwrap();
    assert_eq!(report.rounded, [""; 0]);
    let config = config_of(&written);
    let converted =
        logits(&config, |ops| block_on(load_mlc(ops, &config, format, &DirFiles::new(&mlc), &mut ())).unwrap());
    let difference = relative_difference(&converted, &checkpoint_logits(&written));
    assert!(difference < 1e-5, "{difference}");

    // Skipped matrices are rounded and reported.
    let skipped = folder.path().join("skipped");
    quantize(&tiny("llama"), &skipped, &with_rules(FOUR_BITS, &[r".*\.1\.self_attn\.o:skip"])).unwrap();
    let written = SafetensorsCheckpoint::open(&skipped).unwrap();
    let mlc = folder.path().join("mlc-skipped");
    let report = convert_weight(&written, format, &WeightOptions::default(), &mlc, &mut ()).unwrap();
    assert_eq!(report.lossless.len(), 7, "{:?}", report.lossless);
    assert_eq!(report.rounded, ["model.embed_tokens.weight", "model.layers.1.self_attn.o_proj.weight"]);

    // Eight bits do not fit into the format: an error, or with `refit` the nearest values.
    let wide = folder.path().join("wide");
    quantize(&tiny("llama"), &wide, &with_rules(FOUR_BITS, &[r".*\.0\.mlp\.down:bits=8"])).unwrap();
    let written = SafetensorsCheckpoint::open(&wide).unwrap();
    let mlc = folder.path().join("mlc8");
    let error = convert_weight(&written, format, &WeightOptions::default(), &mlc, &mut ()).unwrap_err();
    assert!(error.to_string().contains("model.layers.0.mlp.down_proj"), "{error}");
    let options = WeightOptions { refit: true, ..WeightOptions::default() };
    let report = convert_weight(&written, format, &options, &mlc, &mut ()).unwrap();
    let refitted: Vec<_> = report.refitted.iter().map(|refit| refit.name.as_str()).collect();
    assert_eq!(refitted, ["model.layers.0.mlp.down_proj"]);
}
