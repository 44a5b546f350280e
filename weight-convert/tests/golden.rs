//! Every byte is mlc_llm's.

mod common;

use common::{format, names, open, read, testdata, tiny_llama};
use weight_convert::{ConfigOptions, ConfigSource, convert_weight, gen_config};

/// The index holds the checksum of every shard, so an equal index means equal shards.
fn check_weights(checkpoint: &str, quantization: &str, golden: &str) {
    let out = tempfile::tempdir().unwrap();
    convert_weight(&open(checkpoint), format(quantization), out.path(), &mut ()).unwrap();
    let expected = String::from_utf8(read(testdata(golden).join("tensor-cache.json"))).unwrap();
    for name in ["tensor-cache.json", "ndarray-cache.json"] {
        let found = String::from_utf8(read(out.path().join(name))).unwrap();
        // Line by line, so that the first difference is what one sees.
        for (found, expected) in found.lines().zip(expected.lines()) {
            assert_eq!(found, expected, "{golden}/{name}");
        }
        assert_eq!(found, expected, "{golden}/{name}");
    }
    assert_eq!(names(out.path()), ["ndarray-cache.json", "params_shard_0.bin", "tensor-cache.json"]);
}

#[test]
fn weights_of_a_tied_bf16_checkpoint() {
    check_weights("arch/llama/hf", "q4f16_1", "mlc/arch-llama/q4f16_1");
    check_weights("arch/llama/hf", "q0f16", "mlc/arch-llama/q0f16");
}

#[test]
fn weights_of_an_untied_sharded_f16_checkpoint() {
    check_weights("mlc/untied-f16-sharded/hf", "q4f16_1", "mlc/untied-f16-sharded/q4f16_1");
    check_weights("mlc/untied-f16-sharded/hf", "q0f16", "mlc/untied-f16-sharded/q0f16");
}

#[test]
fn shards_of_a_real_conversion_are_the_same_bytes() {
    let out = tempfile::tempdir().unwrap();
    convert_weight(&open("arch/llama/hf"), format("q4f16_1"), out.path(), &mut ()).unwrap();
    let expected = read(testdata("arch/llama/q4f16_1/params_shard_0.bin"));
    assert!(read(out.path().join("params_shard_0.bin")) == expected);
}

fn check_config(source: &ConfigSource, quantization: &str, options: &ConfigOptions, golden: &str) {
    let out = tempfile::tempdir().unwrap();
    gen_config(source, format(quantization), options, out.path()).unwrap();
    let found = String::from_utf8(read(out.path().join("mlc-chat-config.json"))).unwrap();
    let expected = String::from_utf8(read(testdata(golden).join("mlc-chat-config.json"))).unwrap();
    // The recorded runs without a tokenizer_config.json went through transformers' class for Llama, which adds `<unk>`,
    // `<s>` and `</s>` of its own to the 480 tokens of the file. We count what the files have.
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
fn configurations_of_whole_checkpoints() {
    let llama = tiny_llama();
    let source = ConfigSource::folder(llama.path()).unwrap();
    for quantization in ["q4f16_1", "q0f16"] {
        check_config(&source, quantization, &with_template("llama-3_1"), &format!("mlc/arch-llama/{quantization}"));
    }
    let source = ConfigSource::folder(&testdata("mlc/untied-f16-sharded/hf")).unwrap();
    for quantization in ["q4f16_1", "q0f16"] {
        let golden = format!("mlc/untied-f16-sharded/{quantization}");
        check_config(&source, quantization, &with_template("llama-3_1"), &golden);
    }
}

#[test]
fn configurations_with_flags() {
    let source = ConfigSource::folder(&testdata("mlc/gen_config/tied")).unwrap();
    check_config(&source, "q4f16_1", &with_template("chatml"), "mlc/gen_config/tied");
    let options = ConfigOptions { context_window_size: Some(512), ..with_template("llama-3") };
    check_config(&source, "q4f16_1", &options, "mlc/gen_config/tied_ctx512");
    let options = ConfigOptions {
        context_window_size: Some(1024),
        prefill_chunk_size: Some(256),
        max_batch_size: 4,
        ..with_template("chatml")
    };
    check_config(&source, "q4f16_1", &options, "mlc/gen_config/tied_ctx1024_chunk256");
    // A Llama has no sliding window, so these change nothing.
    let options =
        ConfigOptions { sliding_window_size: Some(1024), attention_sink_size: Some(4), ..with_template("LM") };
    check_config(&source, "q4f16_1", &options, "mlc/gen_config/tied_sliding");
}

/// Published configurations; the tokenizer is a tiny one.
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
fn transformers_5_keeps_its_rotary_base_unless_mlcs_bytes_are_asked_for() {
    let source = published("rope_parameters_transformers5");
    let compatible = ConfigOptions { mlc_compat: true, ..with_template("LM") };
    check_config(&source, "q4f16_1", &compatible, "mlc/gen_config/rope_parameters_transformers5");

    let out = tempfile::tempdir().unwrap();
    gen_config(&source, format("q4f16_1"), &with_template("LM"), out.path()).unwrap();
    let text = String::from_utf8(read(out.path().join("mlc-chat-config.json"))).unwrap();
    let config = model_format::ChatConfig::parse(&text).unwrap();
    assert_eq!(config.model_config["position_embedding_base"], 500000.0);
    let decoder = model_format::DecoderConfig::from_mlc(&config).unwrap();
    assert_eq!(decoder, model_format::DecoderConfig::from_hf(&source.config_json).unwrap());
}
