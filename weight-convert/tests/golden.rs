//! Weights and configurations equal the recorded output of mlc_llm byte for byte.

mod common;

use common::{format, names, open, read, testdata};
use model_format::{Checkpoint, DecoderConfig, Dtype, Role, checkpoint::read_param, params, quant::QUANT_FORMATS};
use weight_convert::{ConfigOptions, ConfigSource, WeightOptions, convert_weight, gen_config, verify};

/// The index holds the checksum of every shard, so an equal index means equal shards.
fn check_weights(checkpoint: &str, quantization: &str, golden: &str) {
    let out = tempfile::tempdir().unwrap();
    convert_weight(&open(checkpoint), format(quantization), &WeightOptions::default(), out.path(), &mut ()).unwrap();
    let golden = testdata(golden);
    let mut files = vec!["ndarray-cache.json", "params_shard_0.bin", "tensor-cache.json"];
    for (name, expected) in [
        ("tensor-cache.json", "tensor-cache.json"),
        ("ndarray-cache.json", "tensor-cache.json"),
        ("tensor-cache-b16.json", "tensor-cache-b16.json"),
    ] {
        if !golden.join(expected).exists() {
            continue;
        }
        if name == "tensor-cache-b16.json" {
            files.insert(2, name);
        }
        let expected = String::from_utf8(read(golden.join(expected))).unwrap();
        let found = String::from_utf8(read(out.path().join(name))).unwrap();
        // Compare line by line, so that the failure shows the first difference.
        for (found, expected) in found.lines().zip(expected.lines()) {
            assert_eq!(found, expected, "{}/{name}", golden.display());
        }
        assert_eq!(found, expected, "{}/{name}", golden.display());
    }
    assert_eq!(names(out.path()), files);
}

/// Formats with recorded output of mlc_llm.
const FORMATS: [&str; 6] = ["q4f16_1", "q4f32_1", "q4f16_0", "q3f16_1", "q0f16", "q0f32"];

#[test]
fn weights_of_a_tied_bf16_checkpoint() {
    for format in FORMATS {
        check_weights("mlc/tied-bf16/hf", format, &format!("mlc/tied-bf16/{format}"));
    }
}

#[test]
fn weights_of_an_untied_sharded_f16_checkpoint() {
    for format in FORMATS {
        check_weights("mlc/untied-f16-sharded/hf", format, &format!("mlc/untied-f16-sharded/{format}"));
    }
}

/// Every architecture, with the conversation template of its recorded run.
const ARCHITECTURES: [(&str, &str); 8] = [
    ("llama", "llama-3_1"),
    ("mistral", "mistral_default"),
    ("qwen2", "qwen2"),
    ("qwen3", "qwen3"),
    ("phi3", "phi-3"),
    ("phi3-longrope", "phi-3"),
    ("gemma2", "gemma_instruction"),
    ("gemma3", "gemma3_instruction"),
];

fn recorded(arch: &str, quantization: &str) -> String {
    if arch == "llama" { format!("mlc/arch-llama/{quantization}") } else { format!("arch/{arch}/{quantization}") }
}

#[test]
fn weights_of_every_architecture() {
    for (arch, _) in ARCHITECTURES {
        for quantization in ["q4f16_1", "q0f16"] {
            check_weights(&format!("arch/{arch}/hf"), quantization, &recorded(arch, quantization));
        }
    }
}

/// A format that differs from a recorded one in one respect has the recorded bytes in all others.
#[test]
fn formats_between_the_recorded_ones() {
    // q4f16_2 equals q4f16_1, except that it keeps embedding table and head in f16.
    for checkpoint in ["mlc/tied-bf16/hf", "mlc/untied-f16-sharded/hf"] {
        let tensors = |quantization: &str| {
            let out = tempfile::tempdir().unwrap();
            let options = WeightOptions::default();
            convert_weight(&open(checkpoint), format(quantization), &options, out.path(), &mut ()).unwrap();
            let index = String::from_utf8(read(out.path().join("tensor-cache.json"))).unwrap();
            let cache = model_format::TensorCache::parse("tensor-cache.json", &index).unwrap();
            let mut tensors = std::collections::BTreeMap::new();
            for shard in &cache.shards {
                let bytes = read(out.path().join(&shard.data_path));
                for record in &shard.records {
                    let content = bytes[record.byte_offset..][..record.nbytes].to_vec();
                    tensors.insert(record.name.clone(), (record.shape.clone(), record.dtype, content));
                }
            }
            tensors
        };
        let (q4f16_1, q4f16_2, q0f16) = (tensors("q4f16_1"), tensors("q4f16_2"), tensors("q0f16"));
        for (name, tensor) in &q4f16_2 {
            let ends = name.contains("embed_tokens") || name.contains("lm_head");
            assert!(!ends || name.ends_with(".weight"), "{name}");
            assert!(*tensor == if ends { q0f16[name].clone() } else { q4f16_1[name].clone() }, "{name}");
        }
        // Except for the embedding table, a transposed layout is the other layout transposed.
        for (turned, straight) in [("q4f16_0", &q4f16_1), ("q3f16_0", &tensors("q3f16_1"))] {
            for (name, (shape, _, content)) in &tensors(turned) {
                let (original_shape, dtype, original) = &straight[name];
                if shape.len() == 1 || name.contains("embed_tokens") {
                    assert!(shape == original_shape && content == original, "{turned}: {name}");
                    continue;
                }
                let ([rows, cols], size) = (shape[..].try_into().unwrap(), dtype.size());
                assert_eq!([cols, rows], original_shape[..], "{turned}: {name}");
                for row in 0..rows {
                    for col in 0..cols {
                        let found = &content[(row * cols + col) * size..][..size];
                        assert_eq!(found, &original[(col * rows + row) * size..][..size], "{turned}: {name}");
                    }
                }
            }
        }
    }
}

/// In bf16 formats, each step of the arithmetic rounds to bf16, and all numbers are stored in bf16.
#[test]
fn bf16_formats_round_every_step() {
    use half::bf16;
    let checkpoint = open("mlc/tied-bf16/hf");
    let name = "model.layers.0.self_attn.o_proj";
    let weights = checkpoint.tensor(&format!("{name}.weight")).unwrap();
    let (rows, cols) = (weights.shape[0], weights.shape[1]);
    let weights = weights.to_f32();
    let found = format("q4bf16_1").quantize(rows, cols, &weights);
    let (codes, seven) = (found.codes(), bf16::from_f32(7.0));
    for (group, weights) in weights.chunks(32).enumerate() {
        let max = weights.iter().fold(0f32, |max, w| max.max(w.abs()));
        let scale = bf16::from_f32(max) / seven;
        assert_eq!(found.q_scale.bits[group], scale.to_bits());
        for (i, weight) in weights.iter().enumerate() {
            let code = (bf16::from_f32(*weight) / scale + seven).to_f32().round_ties_even().clamp(0.0, 14.0);
            assert_eq!(f32::from(codes[group * 32 + i]), code, "{group}, {i}");
        }
    }
    let out = tempfile::tempdir().unwrap();
    convert_weight(&checkpoint, format("q0bf16"), &WeightOptions::default(), out.path(), &mut ()).unwrap();
    let index = String::from_utf8(read(out.path().join("tensor-cache.json"))).unwrap();
    assert!(index.contains("\"dtype\": \"bfloat16\"") && !out.path().join("tensor-cache-b16.json").exists());
    // Numbers of a bf16 checkpoint stay unchanged, so the bytes equal those of q0f32, which is bf16 on disk.
    let other = tempfile::tempdir().unwrap();
    convert_weight(&checkpoint, format("q0f32"), &WeightOptions::default(), other.path(), &mut ()).unwrap();
    assert!(read(out.path().join("params_shard_0.bin")) == read(other.path().join("params_shard_0.bin")));
}

/// A format, read off MLC's table (mlc_llm/quantization/quantization.py) by hand.
struct Written {
    bits: usize,
    group: usize,
    /// True if linear layers are stored as [K, N].
    is_turned: bool,
    keeps_ends: bool,
    /// The number type.
    number: String,
}

impl Written {
    fn of(name: &str) -> Written {
        let (kind, layout) = name.split_once('_').unwrap_or((name, "1"));
        let bits = kind[1..2].parse().unwrap();
        let group = if bits == 3 { 40 } else { 32 };
        Written { bits, group, is_turned: layout == "0", keeps_ends: layout == "2", number: kind[2..].into() }
    }

    /// Rounds a number to the type. MLC stores f32 as bf16 on disk.
    fn rounded(&self, value: f32) -> f32 {
        if self.number == "f16" { half::f16::from_f32(value).to_f32() } else { half::bf16::from_f32(value).to_f32() }
    }
}

/// Shape and bytes of every tensor in a folder.
fn tensors_of(folder: &std::path::Path) -> std::collections::BTreeMap<String, (Vec<usize>, Vec<u8>)> {
    let index: serde_json::Value = serde_json::from_slice(&read(folder.join("tensor-cache.json"))).unwrap();
    let mut tensors = std::collections::BTreeMap::new();
    for shard in index["records"].as_array().unwrap() {
        let bytes = read(folder.join(shard["dataPath"].as_str().unwrap()));
        for record in shard["records"].as_array().unwrap() {
            let number = |name: &str| record[name].as_u64().unwrap() as usize;
            let shape = record["shape"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).collect();
            let content = bytes[number("byteOffset")..][..number("nbytes")].to_vec();
            tensors.insert(record["name"].as_str().unwrap().to_owned(), (shape, content));
        }
    }
    tensors
}

/// Checks every format with a reader in plain loops. A code must be the nearest value on the group's grid, whose end is the largest
/// weight; a number must be rounded to the type.
#[test]
fn folders_of_every_format_hold_the_nearest_values() {
    for source in ["mlc/untied-f16-sharded/hf", "arch/gemma3/hf", "arch/qwen2/hf"] {
        let checkpoint = open(source);
        let decoder = DecoderConfig::from_hf(checkpoint.config_json()).unwrap();
        let is_bf16 = checkpoint.tensors()[0].dtype == Dtype::BF16;
        for quantization in QUANT_FORMATS {
            let out = tempfile::tempdir().unwrap();
            convert_weight(&checkpoint, quantization, &WeightOptions::default(), out.path(), &mut ()).unwrap();
            let tensors = tensors_of(out.path());
            let written = Written::of(quantization.name);
            // Rounding of a weight, its quotient, and a sum of up to 16 steps adds this to half a step.
            let slack = if written.number == "f16" { 1.0 / 80.0 } else { 1.0 / 10.0 };
            // The smallest positive f16: the step of very small scales.
            let least = 0.5f32.powi(24);
            let mut read = 0;
            for param in params(&decoder) {
                let (values, name) = (read_param(&checkpoint, &param).unwrap(), &param.name);
                let context = format!("{source}, {}: {name}", quantization.name);
                let half = |bytes: &[u8], i: usize| {
                    let bits = u16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]);
                    let is_f16 = written.number == "f16";
                    if is_f16 { half::f16::from_bits(bits).to_f32() } else { half::bf16::from_bits(bits).to_f32() }
                };
                let is_end = matches!(param.role, Role::Embedding | Role::LmHead);
                let in_codes = written.bits > 0 && param.role.is_matrix() && !(is_end && written.keeps_ends);
                if !in_codes {
                    let (shape, bytes) = &tensors[name];
                    assert_eq!((shape, bytes.len()), (&param.shape, 2 * values.len()), "{context}");
                    for (i, value) in values.iter().enumerate() {
                        // Gemma stores norms minus 1. The 1 is added in the checkpoint's number type.
                        let value = if is_bf16 { half::bf16::from_f32(*value).to_f32() } else { *value };
                        assert_eq!(half(bytes, i), written.rounded(value), "{context} {i}");
                    }
                    read += 1;
                    continue;
                }
                let (rows, cols) = (param.shape[0], param.shape[1]);
                let module = name.strip_suffix(".weight").unwrap();
                let ((word_shape, words), (scale_shape, scales)) =
                    (&tensors[&format!("{module}.q_weight")], &tensors[&format!("{module}.q_scale")]);
                let (per_word, groups) = (32 / written.bits, cols.div_ceil(written.group));
                let row_words = groups * (written.group / per_word);
                let is_turned = written.is_turned && param.role != Role::Embedding;
                let shape = |k: usize| if is_turned { vec![k, rows] } else { vec![rows, k] };
                assert_eq!((word_shape, scale_shape), (&shape(row_words), &shape(groups)), "{context}");
                let at = |row: usize, k: usize, width: usize| if is_turned { k * rows + row } else { row * width + k };
                let zero = (1i32 << (written.bits - 1)) - 1;
                for row in 0..rows {
                    for group in 0..groups {
                        let inside = group * written.group..((group + 1) * written.group).min(cols);
                        let scale = half(scales, at(row, group, groups));
                        let largest = values[row * cols..][inside.clone()].iter().fold(0f32, |max, v| max.max(v.abs()));
                        let expected = largest / zero as f32;
                        assert!(
                            (scale - expected).abs() <= expected / 128.0 + least,
                            "{context} {row} {group}: {scale} {expected}"
                        );
                        for col in inside {
                            let word = at(row, col / per_word, row_words) * 4;
                            let word = u32::from_le_bytes(words[word..word + 4].try_into().unwrap());
                            let code = word >> (written.bits * (col % per_word)) & ((1 << written.bits) - 1);
                            let found = (code as i32 - zero) as f32 * scale;
                            let difference = (found - values[row * cols + col]).abs();
                            assert!(
                                difference <= (0.5 + slack) * scale + 8.0 * least,
                                "{context} {row} {col}: {found}"
                            );
                        }
                    }
                }
                read += 2;
            }
            assert_eq!(read, tensors.len(), "{source}, {}", quantization.name);
        }
    }
}

/// With 96 weights, the shapes of 4 bits (three groups of 32) and 3 bits (groups of 40) are equal.
#[test]
fn an_ambiguous_format_must_be_named() {
    let out = tempfile::tempdir().unwrap();
    let gemma = open("arch/gemma3/hf");
    convert_weight(&gemma, format("q3f16_1"), &WeightOptions::default(), out.path(), &mut ()).unwrap();
    let error = verify(&gemma, out.path(), None, &mut ()).unwrap_err();
    assert!(error.to_string().contains("q4f16_1 and q3f16_1"), "{error}");
    assert!(error.hint().unwrap().contains("--quantization"));
}

#[test]
fn shards_of_a_real_conversion_are_the_same_bytes() {
    let out = tempfile::tempdir().unwrap();
    convert_weight(&open("arch/llama/hf"), format("q4f16_1"), &WeightOptions::default(), out.path(), &mut ()).unwrap();
    let expected = read(testdata("arch/llama/q4f16_1/params_shard_0.bin"));
    assert!(read(out.path().join("params_shard_0.bin")) == expected);
}

fn check_config(source: &ConfigSource, quantization: &str, options: &ConfigOptions, golden: &str) {
    let out = tempfile::tempdir().unwrap();
    gen_config(source, format(quantization), options, out.path()).unwrap();
    let found = String::from_utf8(read(out.path().join("mlc-chat-config.json"))).unwrap();
    let expected = String::from_utf8(read(testdata(golden).join("mlc-chat-config.json"))).unwrap();
    // Without a tokenizer_config.json, the recorded runs used transformers' class for Llama, which adds `<unk>`, `<s>` and `</s>`
    // to the 480 tokens of the file. We count only the tokens in the files.
    let expected = expected.replace("\"active_vocab_size\": 483,", "\"active_vocab_size\": 480,");
    for (found, expected) in found.lines().zip(expected.lines()) {
        assert_eq!(found, expected, "{golden}");
    }
    assert_eq!(found, expected, "{golden}");
}

fn with_template(name: &str) -> ConfigOptions {
    ConfigOptions { conv_template: Some(name.into()), ..ConfigOptions::default() }
}

#[test]
fn configurations_of_every_architecture() {
    for (arch, template) in ARCHITECTURES {
        let source = with_tiny_tokenizer(arch);
        for quantization in ["q4f16_1", "q0f16"] {
            check_config(&source, quantization, &with_template(template), &recorded(arch, quantization));
            let compatible = ConfigOptions { mlc_compat: true, ..with_template(template) };
            check_config(&source, quantization, &compatible, &recorded(arch, quantization));
        }
    }
}

/// The tiny checkpoint of an architecture, with the tokenizer of its recorded run.
fn with_tiny_tokenizer(arch: &str) -> ConfigSource {
    let mut source = ConfigSource::folder(&testdata(&format!("arch/{arch}/hf"))).unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        source.files.push((name.into(), read(testdata("mlc/arch-llama/tokenizer").join(name))));
    }
    source
}

#[test]
fn configurations_of_every_format() {
    for (case, template) in [("tied-bf16", "chatml"), ("untied-f16-sharded", "llama-3_1")] {
        let source = ConfigSource::folder(&testdata(&format!("mlc/{case}/hf"))).unwrap();
        for quantization in FORMATS {
            check_config(&source, quantization, &with_template(template), &format!("mlc/{case}/{quantization}"));
        }
    }
}

#[test]
fn configurations_with_flags() {
    let source = ConfigSource::folder(&testdata("mlc/tied-bf16/hf")).unwrap();
    let options = ConfigOptions { context_window_size: Some(512), ..with_template("llama-3") };
    check_config(&source, "q4f16_1", &options, "mlc/gen_config/tied_ctx512");
    let options = ConfigOptions {
        context_window_size: Some(1024),
        prefill_chunk_size: Some(256),
        max_batch_size: 4,
        ..with_template("chatml")
    };
    check_config(&source, "q4f16_1", &options, "mlc/gen_config/tied_ctx1024_chunk256");
    // Llama has no sliding window, so these flags change nothing.
    let options =
        ConfigOptions { sliding_window_size: Some(1024), attention_sink_size: Some(4), ..with_template("LM") };
    check_config(&source, "q4f16_1", &options, "mlc/gen_config/tied_sliding");
}

/// A published configuration with a tiny tokenizer.
fn published(case: &str) -> ConfigSource {
    let folder = testdata("mlc/gen_config").join(case);
    let mut files = vec![("tokenizer.json".to_owned(), read(testdata("mlc/untied-f16-sharded/hf/tokenizer.json")))];
    let generation = folder.join("input.generation_config.json");
    if generation.exists() {
        files.push(("generation_config.json".to_owned(), read(generation)));
    }
    let config_json = String::from_utf8(read(folder.join("input.config.json"))).unwrap();
    ConfigSource { location: case.into(), config_json, files }
}

#[test]
fn configurations_of_published_models() {
    for (case, template) in [("llama32_1b_llama-3_1", "llama-3_1"), ("smollm2_135m_chatml", "chatml")] {
        check_config(&published(case), "q4f16_1", &with_template(template), &format!("mlc/gen_config/{case}"));
    }
}

#[test]
fn rotary_base_of_transformers_5_is_kept_unless_mlc_compat_is_set() {
    let source = published("rope_parameters_transformers5");
    let compatible = ConfigOptions { mlc_compat: true, ..with_template("LM") };
    check_config(&source, "q4f16_1", &compatible, "mlc/gen_config/rope_parameters_transformers5");

    let out = tempfile::tempdir().unwrap();
    gen_config(&source, format("q4f16_1"), &with_template("LM"), out.path()).unwrap();
    let text = String::from_utf8(read(out.path().join("mlc-chat-config.json"))).unwrap();
    let config = model_format::ChatConfig::parse(&text).unwrap();
    assert_eq!(config.model_config["position_embedding_base"], 500000.0);
    let decoder = DecoderConfig::from_mlc(&config).unwrap();
    assert_eq!(decoder, DecoderConfig::from_hf(&source.config_json).unwrap());
}
