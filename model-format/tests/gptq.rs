//! GPTQ checkpoints: reading those of other programs, writing and reading back, and lossless conversion.

mod common;

use common::{Memory, testdata};
use half::f16;
use model_format::{
    Checkpoint, Dtype, Error, HostTensor, QuantFormat, SafetensorsCheckpoint,
    gptq::{Change, GptqConfig, GptqMatrix, Rule, Rules},
    quant::group_quant::Scales,
};
use proptest::prelude::*;

const MODULES: [&str; 2] = ["model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj"];

fn open(case: &str) -> (SafetensorsCheckpoint, GptqConfig) {
    let checkpoint = SafetensorsCheckpoint::open(&testdata(&format!("gptq/{case}"))).unwrap();
    let config = GptqConfig::from_config(checkpoint.config_json()).unwrap().unwrap();
    (checkpoint, config)
}

fn matrix(case: &str, module: &str) -> (GptqMatrix, GptqConfig) {
    let (checkpoint, config) = open(case);
    (GptqMatrix::read(&checkpoint, &config, module).unwrap().unwrap(), config)
}

fn q4f16_1() -> &'static QuantFormat {
    QuantFormat::by_name("q4f16_1").unwrap()
}

/// Values rounded to nearest are within half a step of the original weights. With a wrong order of nibbles, groups or
/// zeros they would be far off.
#[test]
fn values_are_near_the_original_weights() {
    let float = SafetensorsCheckpoint::open(&testdata("arch/llama/hf")).unwrap();
    for case in ["llama-sym-g128-v1", "llama-sym-g32-v1", "llama-asym-g32-v1", "llama-actorder-sym-g32-v1"] {
        for module in MODULES {
            let weights = float.tensor(&format!("{module}.weight")).unwrap().to_f32();
            let (matrix, _) = matrix(case, module);
            let groups = matrix.groups();
            for (i, (value, weight)) in matrix.dequantize().iter().zip(&weights).enumerate() {
                let scale = matrix.scales[i / matrix.cols * groups + matrix.g_idx[i % matrix.cols] as usize];
                let error = (value - weight).abs();
                assert!(error <= 0.51 * scale, "{case}, {module}, {i}: {value} for {weight}, scale {scale}");
            }
        }
    }
}

/// Checkpoints quantized, packed and saved by AutoGPTQ itself.
const AUTOGPTQ: [&str; 2] = ["actorder-sym-g64", "static-actorder-sym-g32"];

/// All values equal those of AutoGPTQ's own layers, bit for bit. These checkpoints also have biases of zero, a copy of
/// the tied head, and `null` in the configuration.
#[test]
fn values_equal_autogptq_bit_for_bit() {
    for case in AUTOGPTQ {
        let folder = testdata(&format!("autogptq/{case}"));
        let checkpoint = SafetensorsCheckpoint::open(&folder).unwrap();
        let config = GptqConfig::from_config(checkpoint.config_json()).unwrap().unwrap();
        let parsed = (config.bits, config.desc_act, config.static_groups, config.true_sequential, config.v2);
        assert_eq!(parsed, (4, true, case.starts_with("static"), true, false), "{case}");
        let bytes = std::fs::read(folder.join("expected.safetensors")).unwrap();
        let expected = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let mut count = 0;
        for (module, rows) in expected.tensors().into_iter().filter(|(name, _)| name != "logits") {
            let matrix = GptqMatrix::read(&checkpoint, &config, &module).unwrap().unwrap();
            let rows: Vec<f32> =
                rows.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
            assert_eq!(matrix.dequantize()[..2 * matrix.cols], rows, "{case}: {module}");
            // With static groups, the groups are in the order of the columns.
            let is_natural = matrix.g_idx == config.natural_g_idx(matrix.cols);
            assert_eq!(is_natural, config.static_groups, "{case}: {module}");
            // Writing the matrix gives the same bytes.
            for (name, tensor) in matrix.to_tensors(&config, &module) {
                assert!(tensor.bytes == checkpoint.tensor(&name).unwrap().bytes, "{case}: {name}");
            }
            count += 1;
        }
        assert_eq!(count, 14, "{case}");
    }
}

#[test]
fn both_versions_of_a_checkpoint_give_the_same_matrix() {
    for module in MODULES {
        assert_eq!(matrix("qwen2-sym-g32-v1", module).0, matrix("qwen2-sym-g32-v2", module).0);
    }
}

#[test]
fn reading_then_writing_gives_the_same_bytes() {
    for case in ["llama-sym-g128-v1", "llama-asym-g32-v1", "llama-actorder-sym-g32-v1", "qwen2-actorder-asym-g64-v2"] {
        let (checkpoint, config) = open(case);
        for module in MODULES {
            let matrix = GptqMatrix::read(&checkpoint, &config, module).unwrap().unwrap();
            for (name, tensor) in matrix.to_tensors(&config, module) {
                let expected = checkpoint.tensor(&name).unwrap();
                assert_eq!((tensor.dtype, &tensor.shape), (expected.dtype, &expected.shape), "{case}: {name}");
                assert!(tensor.bytes == expected.bytes, "{case}: {name}");
            }
        }
    }
}

#[test]
fn the_written_configuration_equals_autogptq() {
    for case in ["llama-sym-g128-v1", "llama-sym-g32-v1"] {
        let (_, config) = open(case);
        let expected = common::read(&format!("gptq/{case}/quantize_config.json"));
        assert_eq!(serde_json::to_string_pretty(&config.to_json()).unwrap(), expected.trim_end());
    }
}

#[test]
fn a_separate_quantize_config_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let copy =
        |name: &str| std::fs::copy(testdata("gptq/llama-sym-g32-v1").join(name), folder.path().join(name)).unwrap();
    copy("quantize_config.json");
    let from = testdata("gptq/llama-sym-g32-v1").join("model.safetensors");
    std::fs::copy(from, folder.path().join("gptq_model-4bit-32g.safetensors")).unwrap();
    std::fs::copy(testdata("arch/llama/hf/config.json"), folder.path().join("config.json")).unwrap();
    let checkpoint = SafetensorsCheckpoint::open(folder.path()).unwrap();
    let config = GptqConfig::from_config(checkpoint.config_json()).unwrap().unwrap();
    assert_eq!(config, open("llama-sym-g32-v1").1);
}

#[test]
fn symmetric_checkpoints_convert_without_loss() {
    for case in ["llama-sym-g128-v1", "llama-sym-g32-v1", "qwen2-sym-g32-v1"] {
        for module in MODULES {
            let (matrix, _) = matrix(case, module);
            assert_eq!(
                matrix.to_format(q4f16_1(), module).unwrap().dequantize(),
                matrix.dequantize(),
                "{case}: {module}"
            );
        }
    }
}

#[test]
fn a_lossy_conversion_is_an_error() {
    let (shuffled, _) = matrix("llama-actorder-sym-g32-v1", MODULES[0]);
    let (asymmetric, _) = matrix("llama-asym-g32-v1", MODULES[0]);
    for (matrix, reason) in [(shuffled, "act-order"), (asymmetric, "zero")] {
        let error = matrix.to_format(q4f16_1(), "q_proj").unwrap_err();
        assert!(matches!(error, Error::NotLossless { .. }) && error.to_string().contains(reason), "{error}");
    }
}

/// All codes with all finite scales of both signs, for the two zeros with which the format can represent all codes.
#[test]
fn every_code_and_scale_converts_exactly() {
    let scales: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).filter(|s| s.is_finite()).collect();
    let rows = scales.len();
    for zero in [7, 8] {
        let matrix = GptqMatrix {
            rows,
            cols: 32,
            codes: (0..rows * 32).map(|i| (i % 16) as u8).collect(),
            scales: scales.iter().map(|s| s.to_f32()).collect(),
            zeros: vec![zero; rows],
            g_idx: vec![0; 32],
        };
        let converted = matrix.to_format(q4f16_1(), "all").unwrap();
        assert!(converted.dequantize() == matrix.dequantize(), "zero {zero}");
    }
}

/// A GPTQ checkpoint with groups of 32 can store the grid of q4f16_1: code 15 - n, scale -S.
#[test]
fn the_q4f16_1_grid_survives_a_gptq_checkpoint() {
    let config = GptqConfig {
        bits: 4,
        group_size: Some(32),
        desc_act: false,
        static_groups: false,
        sym: true,
        true_sequential: true,
        damp_percent: 0.01,
        v2: false,
        lm_head: false,
        rules: Rules::default(),
    };
    let (rows, cols) = (8, 64);
    let n: Vec<u8> = (0..rows * cols).map(|i| (i * 7 % 16) as u8).collect();
    let scales: Vec<f16> = (0..rows * 2).map(|i| f16::from_f32((i as f32 - 7.0) * 0.01)).collect();
    let ours = q4f16_1().pack(rows, cols, &n, Scales::f16(&scales));
    let as_gptq = GptqMatrix {
        rows,
        cols,
        codes: n.iter().map(|n| 15 - n).collect(),
        scales: scales.iter().map(|s| -s.to_f32()).collect(),
        zeros: vec![8; rows * 2],
        g_idx: config.natural_g_idx(cols),
    };
    let mut memory = Memory::default();
    for (name, tensor) in as_gptq.to_tensors(&config, "m") {
        memory.add(&name, tensor);
    }
    let read = GptqMatrix::read(&memory, &config, "m").unwrap().unwrap();
    let found = read.to_format(q4f16_1(), "m").unwrap();
    assert_eq!(found.codes(), ours.codes());
    assert_eq!(found.dequantize(), ours.dequantize());
}

/// 576 inputs are four and a half groups of 128.
#[test]
fn an_incomplete_last_group_is_supported() {
    let config = GptqConfig { group_size: Some(128), ..open("llama-sym-g128-v1").1 };
    let matrix = GptqMatrix {
        rows: 8,
        cols: 576,
        codes: (0..8 * 576).map(|i| (i * 5 % 16) as u8).collect(),
        scales: (0..8 * 5).map(|i| 1.0 + i as f32).collect(),
        zeros: vec![8; 8 * 5],
        g_idx: config.natural_g_idx(576),
    };
    let mut memory = Memory::default();
    for (name, tensor) in matrix.to_tensors(&config, "m") {
        memory.add(&name, tensor);
    }
    assert_eq!(GptqMatrix::read(&memory, &config, "m").unwrap().unwrap(), matrix);
    assert_eq!(matrix.to_format(q4f16_1(), "m").unwrap().dequantize(), matrix.dequantize());
}

/// A refit keeps each group that the format can represent exactly.
#[test]
fn a_refit_changes_as_few_groups_as_possible() {
    let (symmetric, _) = matrix("llama-sym-g128-v1", MODULES[0]);
    assert_eq!(symmetric.refit(q4f16_1(), "m"), (symmetric.to_format(q4f16_1(), "m").unwrap(), None));

    for (case, module) in [
        ("llama-asym-g32-v1", MODULES[0]),
        ("llama-actorder-sym-g32-v1", MODULES[1]),
        ("qwen2-actorder-asym-g64-v2", MODULES[0]),
    ] {
        let (matrix, _) = matrix(case, module);
        let (refitted, refit) = matrix.refit(q4f16_1(), "m");
        let refit = refit.unwrap();
        let values = matrix.dequantize();
        let error = |found: &[f32]| {
            found.iter().zip(&values).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>()
                / values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>()
        };
        let found = error(&refitted.dequantize());
        assert!((found.sqrt() - f64::from(refit.relative_error)).abs() < 1e-6, "{case}: {refit:?}");
        assert!(refit.groups > 0 && refit.groups <= refit.of_groups && refit.max_error > 0.0, "{case}: {refit:?}");
        // Closer than MLC's round-to-nearest.
        let nearest = q4f16_1().quantize(matrix.rows, matrix.cols, &values);
        assert!(found < error(&nearest.dequantize()), "{case}: {found}");
        // In this case some groups can be kept.
        if case == "llama-asym-g32-v1" {
            assert!(refit.groups < refit.of_groups, "{refit:?}");
        }
    }
}

#[test]
fn scales_that_the_format_cannot_hold_are_errors_or_refitted() {
    let matrix = |scale: f32| GptqMatrix {
        rows: 1,
        cols: 32,
        codes: (0..32).map(|i| i % 16).collect(),
        scales: vec![scale],
        zeros: vec![8],
        g_idx: vec![0; 32],
    };
    // Below half of f16's smallest subnormal, between two f16 numbers, and above the largest.
    for scale in [1e-9, 0.1, 1e6] {
        let error = matrix(scale).to_format(q4f16_1(), "m").unwrap_err().to_string();
        assert!(error.contains("which `q4f16_1` cannot hold in f16"), "{error}");
    }
    let (_, refit) = matrix(0.1).refit(q4f16_1(), "m");
    assert!(refit.unwrap().relative_error < 5e-4);
    // An f16 number with more digits than bf16 has.
    let q4f32_1 = QuantFormat::by_name("q4f32_1").unwrap();
    assert!(matrix(f16::from_f32(0.1).to_f32()).to_format(q4f32_1, "m").is_err());
    assert!(matrix(0.125).to_format(q4f32_1, "m").is_ok());
}

/// GPTQModel's `dynamic`, by its documentation and Python's `re.match`: the first pattern that matches at the start of
/// a name decides.
#[test]
fn rules_change_modules() {
    let config = r#"{"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": true, "dynamic": {
        ".*\\.(?:1[5-9]|2)\\..*gate.*": {"bits": 8, "group_size": 64, "hyb_act": true},
        "+:model\\.layers\\.3\\.(?!mlp)": {"sym": false, "group_size": -1},
        "-:.*down.*": {},
        "layers": {"bits": 2}
    }}}"#;
    let config = GptqConfig::from_config(config).unwrap().unwrap();
    let check = |module: &str, bits: usize, group_size: Option<usize>, sym: bool| {
        let found = config.of_module(module).unwrap();
        assert_eq!((found.bits, found.group_size, found.sym), (bits, group_size, sym), "{module}");
    };
    check("model.layers.18.mlp.gate_proj", 8, Some(64), true);
    check("model.layers.2.mlp.gate_proj", 8, Some(64), true);
    check("model.layers.12.mlp.gate_proj", 4, Some(128), true);
    check("model.layers.3.self_attn.q_proj", 4, None, false);
    check("model.layers.3.mlp.up_proj", 4, Some(128), true);
    assert_eq!(config.rules.change_of("model.layers.3.mlp.down_proj").unwrap(), Some(Change::Skip));
    assert_eq!(config.rules.change_of("model.layers.4.self_attn.q_proj").unwrap(), None);
    // The written configuration parses to the same configuration.
    let json = serde_json::json!({ "quantization_config": config.to_json() }).to_string();
    assert_eq!(GptqConfig::from_config(&json).unwrap().unwrap(), config);

    for bad in [
        r#"[]"#,
        r#"{"(": {}}"#,
        r#"{"x": {"bits": 5}}"#,
        r#"{"x": {"group_size": 0}}"#,
        r#"{"x": {"sym": 1}}"#,
        r#"{"x": {"bits": "8"}}"#,
    ] {
        let config = format!(
            r#"{{"quantization_config": {{"quant_method": "gptq", "bits": 4, "group_size": 128, "dynamic": {bad}}}}}"#
        );
        let error = GptqConfig::from_config(&config).unwrap_err().to_string();
        assert!(error.contains("dynamic"), "{bad}: {error}");
    }
}

#[test]
fn rules_are_parsed_from_the_command_line_syntax() {
    let some = |bits, group_size, sym| Change::Settings { bits, group_size, sym };
    for (text, change) in [
        (r".*\.(?:k|v)_proj:bits=8,group=32", some(Some(8), Some(Some(32)), None)),
        ("lm_head:group=-1,sym=false", some(None, Some(None), Some(false))),
        ("a:b:skip", Change::Skip),
    ] {
        let rule = Rule::parse(text).unwrap();
        assert_eq!((rule.change(), rule.to_string()), (change, text.to_owned()));
    }
    for bad in ["x", "x:", "x:bits", "x:bits=5", "x:bits=", "x:group=0", "x:sym=no", "x:damp=1", "(:skip"] {
        assert!(Rule::parse(bad).is_err(), "{bad}");
    }
    let exact = Rule::exact("a.b", Change::Skip);
    assert_eq!(["a.b", "axb", "a.bc"].map(|name| exact.matches(name).unwrap()), [true, false, false]);
    // Python's `re.match` matches at the start only.
    assert!(!Rule::parse("b:skip").unwrap().matches("a.b").unwrap());
}

/// AutoGPTQ packs 32 codes of 3 bits into three words. Words 0, 1 and 2 have ten complete codes each. Codes 10 and 21
/// cross a word boundary.
#[test]
fn three_bit_codes_cross_word_boundaries() {
    let code = |k: usize, n: usize| ((k * 5 + n * 3 + k / 7) % 8) as u32;
    let words = |code: &dyn Fn(usize) -> u32| {
        let mut words = [0u32; 3];
        for j in 0..10 {
            words[0] |= code(j) << (3 * j);
            words[1] |= code(j + 11) << (3 * j + 1);
            words[2] |= code(j + 22) << (3 * j + 2);
        }
        words[0] |= code(10) << 30;
        words[1] |= (code(10) >> 2 & 1) | code(21) << 31;
        words[2] |= code(21) >> 1 & 3;
        words
    };
    let (cols, rows) = (64, 32);
    let tensor = |shape: [usize; 2], words: Vec<u32>| HostTensor {
        dtype: Dtype::I32,
        shape: shape.to_vec(),
        bytes: words.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<u8>>().into(),
    };
    // [K * 3 / 32, N]
    let mut qweight = vec![0; 6 * rows];
    for n in 0..rows {
        for block in 0..2 {
            for (i, word) in words(&|k| code(block * 32 + k, n)).into_iter().enumerate() {
                qweight[(block * 3 + i) * rows + n] = word;
            }
        }
    }
    // Zero 4, stored minus one.
    let qzeros: Vec<u32> = [words(&|_| 3), words(&|_| 3)].concat();
    let mut memory = Memory::default();
    memory.add("m.qweight", tensor([6, rows], qweight));
    memory.add("m.qzeros", tensor([2, 3], qzeros));
    memory.add_f32("m.scales", &[2, rows], &vec![0.25; 2 * rows]);
    let config = GptqConfig { bits: 3, group_size: Some(32), sym: true, v2: false, ..open("llama-sym-g32-v1").1 };
    assert!(GptqMatrix::is_quantized(&memory, &config, "m", [rows, cols]).unwrap());
    let matrix = GptqMatrix::read(&memory, &config, "m").unwrap().unwrap();
    for n in 0..rows {
        for k in 0..cols {
            assert_eq!(u32::from(matrix.codes[n * cols + k]), code(k, n), "{n}, {k}");
        }
    }
    assert!(matrix.zeros.iter().all(|&zero| zero == 4));
    for (name, tensor) in matrix.to_tensors(&config, "m").into_iter().filter(|(name, _)| name.starts_with("m.q")) {
        assert_eq!(tensor.bytes, memory.tensor(&name).unwrap().bytes, "{name}");
    }
    // Sixteen codes can represent the eight values exactly.
    assert_eq!(matrix.to_format(q4f16_1(), "m").unwrap().dequantize(), matrix.dequantize());
}

#[test]
fn broken_modules_are_named() {
    let (checkpoint, config) = open("llama-sym-g32-v1");
    let module = MODULES[0];
    let part = |part: &str| {
        let tensor = checkpoint.tensor(&format!("{module}.{part}")).unwrap();
        HostTensor { dtype: tensor.dtype, shape: tensor.shape.clone(), bytes: tensor.bytes.into_owned().into() }
    };
    let check = |changed: &str, change: &dyn Fn(&mut HostTensor<'static>), message: &str| {
        let mut memory = Memory::default();
        for name in ["qweight", "qzeros", "scales", "g_idx"] {
            let mut tensor = part(name);
            if name == changed {
                change(&mut tensor);
            }
            memory.add(&format!("{module}.{name}"), tensor);
        }
        let error = GptqMatrix::read(&memory, &config, module).unwrap_err().to_string();
        assert!(error.contains(message), "{changed}: {error}");
    };
    check("scales", &|t| t.bytes.to_mut()[..2].copy_from_slice(&f16::NAN.to_le_bytes()), "NaN at index 0");
    check("scales", &|t| t.shape = vec![t.shape[1], t.shape[0]], "scales` in `memory` has shape");
    check("scales", &|t| t.dtype = Dtype::I32, "dtype i32");
    check("qzeros", &|t| t.bytes.to_mut()[0] = 0x88, "is `checkpoint_format` right");
    check("g_idx", &|t| t.bytes.to_mut()[..4].copy_from_slice(&99i32.to_le_bytes()), "refers to group 99");
    check("g_idx", &|t| t.bytes.to_mut()[..4].copy_from_slice(&(-1i32).to_le_bytes()), "refers to group -1");
    check("qweight", &|t| t.dtype = Dtype::F32, "dtype f32");
    check("qweight", &|t| t.shape = vec![t.shape[0] * t.shape[1]], "has shape");

    let mut memory = Memory::default();
    memory.add(&format!("{module}.qweight"), part("qweight"));
    let error = GptqMatrix::read(&memory, &config, module).unwrap_err();
    assert!(error.to_string().contains("q_proj.qzeros` is missing"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn writing_then_reading_gives_the_same_matrix(
        (bits, v2) in (prop_oneof![Just(2usize), Just(3), Just(4), Just(8)], any::<bool>()),
        rows in 1usize..6,
        words in 1usize..12,
        group in prop_oneof![Just(None), (1usize..70).prop_map(Some)],
        seed in any::<u64>(),
    ) {
        let config = GptqConfig {
            bits, group_size: group, desc_act: false, static_groups: false, sym: false, true_sequential: true, damp_percent: 0.1,
            v2, lm_head: false, rules: Rules::default(),
        };
        let (rows, cols) = (rows * config.multiple(), words * config.multiple());
        let groups = config.groups(cols);
        let mut state = seed | 1;
        let mut next = move |below: u64| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) % below
        };
        let levels = 1u64 << bits;
        let matrix = GptqMatrix {
            rows,
            cols,
            codes: (0..rows * cols).map(|_| next(levels) as u8).collect(),
            scales: (0..rows * groups).map(|_| f16::from_bits(next(0x7c00) as u16).to_f32()).collect(),
            zeros: (0..rows * groups).map(|_| (1 + next(levels - 1)) as u8).collect(),
            g_idx: (0..cols).map(|_| next(groups as u64) as u32).collect(),
        };
        let mut memory = Memory::default();
        for (name, tensor) in matrix.to_tensors(&config, "m") {
            memory.add(&name, tensor);
        }
        prop_assert!(GptqMatrix::is_quantized(&memory, &config, "m", [rows, cols]).unwrap());
        prop_assert_eq!(GptqMatrix::read(&memory, &config, "m").unwrap().unwrap(), matrix);
    }
}
