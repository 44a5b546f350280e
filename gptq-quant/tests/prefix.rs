//! BOS in calibration text, in text that the model writes and in evaluations, with a model that needs it (testdata/sink).

mod common;

use std::path::{Path, PathBuf};

use assert_cmd::Command;
use calib_data::TokenWindows;
use gptq_quant::{Report, SelfText, evaluate, write_windows};
use infer_core::{block_on, ops::candle::CandleOps};
use model_format::{Checkpoint, SafetensorsCheckpoint};
use serde_json::Value;

use common::testdata;

const BOS: u32 = 1;

/// Copies the model to `folder/NAME`, with a context of 64 tokens.
fn model(folder: &Path, name: &str) -> PathBuf {
    let model = folder.join(name);
    std::fs::create_dir(&model).unwrap();
    for file in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(testdata("sink").join(file), model.join(file)).unwrap();
    }
    edit(&model.join("config.json"), |config| config["max_position_embeddings"] = 64.into());
    model
}

fn edit(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut value: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    change(&mut value);
    std::fs::write(path, value.to_string()).unwrap();
}

/// Copies the model without its post-processor, so that the tokenizer adds no prefix.
fn model_without_rule(folder: &Path, name: &str) {
    let model = model(folder, name);
    edit(&model.join("tokenizer.json"), |tokenizer| tokenizer["post_processor"] = Value::Null);
}

fn command(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::cargo_bin("gptq-quant").unwrap();
    command.current_dir(folder).env("HF_HUB_OFFLINE", "1").env("HF_HOME", folder.join("hub")).args(args);
    command.args(["--device", "cpu", "--group-size", "32", "--samples", "12", "--seq-len", "64"]);
    command
}

/// Standard output.
fn quantize(folder: &Path, args: &[&str]) -> String {
    let output = command(folder, args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn weights(folder: &Path, name: &str) -> Vec<u8> {
    std::fs::read(folder.join(name).join("model.safetensors")).unwrap()
}

#[test]
fn evaluation_has_perplexities_with_and_without_bos() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    model(folder, "model");
    let expected: Value = serde_json::from_slice(&std::fs::read(testdata("sink/expected.json")).unwrap()).unwrap();
    for name in ["text", "calibration"] {
        std::fs::copy(testdata("sink").join(format!("{name}.txt")), folder.join(format!("{name}.txt"))).unwrap();
    }
    let args = |out| ["model", "-o", out, "--calib", "calibration.txt", "--eval", "text.txt"];
    for (out, more, name, words, tokens) in [
        (
            "auto",
            &[][..],
            "bos",
            "tokens of `text.txt`, each beginning with `<|begin_of_text|>`",
            vec!["<|begin_of_text|>"],
        ),
        ("none", &["--prefix-token", "none"], "none", "tokens of `text.txt`, without a prefix token", vec![]),
    ] {
        let stdout = quantize(folder, &[&args(out)[..], more].concat());
        assert!(stdout.contains(words), "{stdout}");
        let report = Report::read(&folder.join(out)).unwrap().unwrap();
        assert_eq!(report.prefix_tokens, tokens);
        let evaluation = report.evaluation.unwrap();
        let perplexity = expected[name]["perplexity"].as_f64().unwrap();
        assert_eq!(evaluation.windows.len(), 10);
        assert!((evaluation.float_perplexity / perplexity - 1.0).abs() < 1e-3, "{evaluation:?}, expected {perplexity}");
        let page = std::fs::read_to_string(folder.join(out).join("quantize_report.html")).unwrap();
        let escaped = tokens.concat().replace('<', "&lt;").replace('>', "&gt;");
        let words =
            if tokens.is_empty() { "without a prefix token" } else { &format!("each beginning with `{escaped}`") };
        assert!(page.contains(words), "{page}");
    }
    // The prefix is part of the fingerprint.
    assert_ne!(weights(folder, "auto"), weights(folder, "none"));
    let same = "is what this command makes";
    assert!(quantize(folder, &args("auto")).contains(same));
    let output = command(folder, &[&args("auto")[..], &["--prefix-token", "none"]].concat()).output().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(!stdout.contains(same), "{stdout}");
}

/// Compares with a tokenizer without the rule and a text that spells BOS at the beginning of each window.
#[test]
fn calibration_windows_begin_with_bos() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    model(folder, "model");
    model_without_rule(folder, "plain");
    let text = std::fs::read_to_string(testdata("sink/calibration.txt")).unwrap();
    std::fs::write(folder.join("text.txt"), &text).unwrap();
    let words: Vec<&str> = text.split_whitespace().collect();
    let written: Vec<String> = words.chunks(63).map(|words| format!("<|begin_of_text|> {}", words.join(" "))).collect();
    std::fs::write(folder.join("written.txt"), written.join(" ")).unwrap();
    let made = |model: &str, text: &str, out: &str, more: &[&str]| {
        quantize(folder, &[&[model, "-o", out, "--calib", text], more].concat());
        weights(folder, out)
    };
    let by_rule = made("model", "text.txt", "a", &[]);
    assert_eq!(by_rule, made("plain", "written.txt", "b", &[]));
    assert_eq!(by_rule, made("model", "written.txt", "c", &[]), "BOS is not doubled");
    let without = made("plain", "text.txt", "d", &[]);
    assert_eq!(without, made("model", "text.txt", "e", &["--prefix-token", "none"]));
    assert_ne!(by_rule, without);
}

fn write(model: &Path, prefix: &[u32], random: f64) -> Vec<Vec<u32>> {
    let checkpoint = SafetensorsCheckpoint::open(model).unwrap();
    let text = SelfText { samples: 6, seq_len: 20, prefix, seed: 1, temperature: 1.0, random, head: None };
    let mut none = |_: &_, _: &_| Ok(());
    let windows = block_on(write_windows(CandleOps::default(), &checkpoint, text, &mut (), &mut none)).unwrap();
    windows.iter().map(<[u32]>::to_vec).collect()
}

#[test]
fn text_that_the_model_writes_begins_with_bos() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(folder.path(), "model");
    for random in [0.0, 0.5] {
        for window in write(&model, &[BOS], random) {
            assert!(window[0] == BOS && window[1] != BOS && window.len() == 20, "{window:?}");
        }
    }
    assert!(write(&model, &[], 0.5).iter().all(|window| window[0] != BOS));
    // A template that writes BOS, and one that does not. The vocabulary lacks the user's words, and encoding would drop a control
    // token.
    edit(&model.join("tokenizer.json"), |tokenizer| tokenizer["added_tokens"][0]["special"] = false.into());
    for (template, begin) in [("<|begin_of_text|> w9 ", [BOS, 12]), (" w9 ", [BOS, 12])] {
        let template = format!("{template}{{{{ messages[0].content }}}}");
        std::fs::write(model.join("chat_template.jinja"), template).unwrap();
        let windows = write(&model, &[BOS], 0.0);
        let conversations = windows.iter().step_by(2);
        assert!(conversations.clone().all(|window| window[..2] == begin && window[2] != BOS), "{windows:?}");
    }
    // The program does the same.
    std::fs::remove_file(model.join("chat_template.jinja")).unwrap();
    quantize(folder.path(), &["model", "-o", "out"]);
    quantize(folder.path(), &["model", "-o", "none", "--prefix-token", "none"]);
    assert_ne!(weights(folder.path(), "out"), weights(folder.path(), "none"));
    let report = Report::read(&folder.path().join("out")).unwrap().unwrap();
    assert_eq!(report.prefix_tokens, ["<|begin_of_text|>"]);
}

/// Losses after two prefix tokens are the losses of the other tokens.
#[test]
fn losses_of_prefix_tokens_are_not_counted() {
    let model = SafetensorsCheckpoint::open(&testdata("sink")).unwrap();
    let window: Vec<u32> = [BOS, 2].into_iter().chain(10..30).collect();
    let measured = |window: &[u32], prefix_len| {
        let windows = TokenWindows::from_windows(&[window.to_vec()]);
        let models: [&dyn Checkpoint; 2] = [&model, &model];
        block_on(evaluate(&mut CandleOps::default(), models, "", &windows, prefix_len, None, &mut ())).unwrap()
    };
    let (all, text) = (measured(&window, 0).windows[0][0] * 21.0, measured(&window, 2).windows[0][0] * 20.0);
    let of_second = measured(&window[..2], 1).windows[0][0];
    assert!((all - text - of_second).abs() < 1e-4, "{all}, {text}, {of_second}");
}
