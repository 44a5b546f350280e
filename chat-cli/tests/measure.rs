//! `perplexity`, `logits` and `bench` from outside, against logits recorded from transformers (testdata/README.md).

use std::{
    fs,
    path::{Path, PathBuf},
    process::Output,
};

use assert_cmd::Command;
use safetensors::SafeTensors;
use serde_json::{Value, json};
use tempfile::TempDir;

const ARCHITECTURES: [&str; 8] = ["llama", "mistral", "qwen2", "qwen3", "phi3", "phi3-longrope", "gemma2", "gemma3"];

fn testdata(arch: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/arch").join(arch)
}

/// The 32-bit words of a recorded tensor.
fn words(path: &Path, name: &str) -> Vec<[u8; 4]> {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    file.tensor(name).unwrap().data().chunks_exact(4).map(|b| [b[0], b[1], b[2], b[3]]).collect()
}

fn f32s(path: &Path, name: &str) -> Vec<f32> {
    words(path, name).into_iter().map(f32::from_le_bytes).collect()
}

fn ids(arch: &str) -> Vec<u32> {
    words(&testdata(arch).join("logits.safetensors"), "ids_0").into_iter().map(u32::from_le_bytes).collect()
}

fn chat_cli(home: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::cargo_bin("chat-cli").unwrap();
    command.current_dir(home).env("HOME", home).env("HF_HUB_OFFLINE", "1").args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// `cpu`, and `gpu` if the machine has one; else prints the reason for skipping.
fn devices() -> Vec<&'static str> {
    let home = tempfile::tempdir().unwrap();
    let list: Value = serde_json::from_slice(&chat_cli(home.path(), &["devices", "--json"]).stdout).unwrap();
    if list.as_array().unwrap().is_empty() {
        assert!(std::env::var_os("REQUIRE_GPU").is_none(), "no GPU");
        eprintln!("skipped: no GPU");
        return vec!["cpu"];
    }
    vec!["cpu", "gpu"]
}

/// Normalized mean squared error.
fn nmse(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let error: f64 = found.iter().zip(expected).map(|(f, e)| f64::from(f - e).powi(2)).sum();
    error / expected.iter().map(|&e| f64::from(e).powi(2)).sum::<f64>()
}

/// Runs `logits` on ids and returns the tensor.
fn logits(model: &Path, ids: &[u32], device: &str) -> (Vec<usize>, Vec<f32>) {
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("ids.json"), json!(ids).to_string()).unwrap();
    let model = model.to_str().unwrap();
    let output = chat_cli(home.path(), &["logits", model, "--ids", "ids.json", "-o", "out", "--device", device]);
    assert!(output.status.success(), "{model} on {device}: {}", text(&output.stderr));
    assert!(output.stdout.is_empty());
    let bytes = fs::read(home.path().join("out")).unwrap();
    let shape = SafeTensors::deserialize(&bytes).unwrap().tensor("logits").unwrap().shape().to_vec();
    (shape, f32s(&home.path().join("out"), "logits"))
}

#[test]
fn logits_equal_transformers() {
    for device in devices() {
        for arch in ARCHITECTURES {
            let (ids, folder) = (ids(arch), testdata(arch));
            for (model, golden, limit) in
                [("hf", "logits.safetensors", 1e-8), ("q4f16_1", "logits_q4f16_1.safetensors", 1e-4)]
            {
                let (shape, found) = logits(&folder.join(model), &ids, device);
                assert_eq!(shape, [ids.len(), 512]);
                let expected = f32s(&folder.join(golden), "logits_0");
                let error = nmse(&found, &expected);
                assert!(error <= limit, "{arch} {model} on {device}: nmse {error:e}");
            }
        }
    }
}

/// A long text is written in several pieces.
#[test]
fn logits_of_a_text_are_those_of_its_beginning() {
    let model = testdata("llama").join("hf");
    let long: Vec<u32> = ids("llama").into_iter().cycle().take(300).collect();
    let (whole, beginning) = (logits(&model, &long, "cpu"), logits(&model, &ids("llama"), "cpu"));
    assert_eq!(whole.0, [300, 512]);
    assert!(nmse(&whole.1[..beginning.1.len()], &beginning.1) < 1e-10);
    assert!(whole.1.iter().all(|value| value.is_finite()));
}

/// A checkpoint whose tokenizer encodes `t5` as id 5, and the recorded ids as a text.
fn model_and_text() -> (TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(testdata("llama").join("hf")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    let vocab: serde_json::Map<String, Value> = (0..512).map(|id| (format!("t{id}"), id.into())).collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "t0"},
    });
    fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let words: Vec<String> = ids("llama").iter().map(|id| format!("t{id}")).collect();
    let text = words.join(" ");
    fs::write(folder.path().join("text"), &text).unwrap();
    (folder, text)
}

/// The mean loss of a text of recorded logits, in f64.
fn mean_loss(ids: &[u32], logits: &[f32]) -> f64 {
    let rows = logits.chunks_exact(512).zip(&ids[1..]);
    let losses = rows.map(|(row, &target)| {
        let sum: f64 = row.iter().map(|&logit| f64::from(logit).exp()).sum();
        sum.ln() - f64::from(row[target as usize])
    });
    losses.sum::<f64>() / (ids.len() - 1) as f64
}

#[test]
fn perplexity_is_that_of_transformers_logits() {
    let (model, _) = model_and_text();
    let (ids, logits) = (ids("llama"), f32s(&testdata("llama").join("logits.safetensors"), "logits_0"));
    for device in devices() {
        for window in [ids.len(), ids.len() / 2, 2] {
            let window_text = window.to_string();
            let arguments =
                ["perplexity", ".", "--text", "text", "--window", &window_text, "--max-windows", "1", "--json"];
            let output = chat_cli(model.path(), &[&arguments[..], &["--device", device, "--cache", "f32"]].concat());
            assert!(output.status.success(), "{}", text(&output.stderr));
            let report: Value = serde_json::from_slice(&output.stdout).unwrap();
            let expected = mean_loss(&ids[..window], &logits[..(window - 1) * 512]);
            let found = report["window_losses"][0].as_f64().unwrap();
            assert!((found - expected).abs() < 1e-4, "{device}, {window}: {found}, expected {expected}");
            assert!((report["perplexity"].as_f64().unwrap() - expected.exp()).abs() < 1e-3 * expected.exp());
            assert_eq!((&report["windows"], &report["window"]), (&json!(1), &json!(window)));
        }
    }
    let output = chat_cli(model.path(), &["perplexity", ".", "--text", "text", "--window", "16", "--device", "cpu"]);
    let line = text(&output.stdout);
    assert!(line.contains(&format!("over {} windows of 16 tokens", ids.len() / 16)), "{line}");
}

/// Exit code 1, an error that contains `expected`, a hint, and no file.
fn check_failure(home: &Path, arguments: &[&str], expected: &str) {
    let output = chat_cli(home, arguments);
    let err = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {err}");
    assert!(err.contains("error: ") && err.contains(expected) && err.contains("hint: "), "{expected}: {err}");
    assert!(output.stdout.is_empty());
    let left: Vec<_> = fs::read_dir(home).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().contains("out")), "{left:?}");
}

#[test]
fn bad_ids_are_an_error_with_a_hint() {
    let model = testdata("llama").join("hf");
    let long = json!(vec![1; 4097]).to_string();
    for (content, expected) in [
        ("[]", "holds no token id"),
        ("{\"ids\": [1]}", "is not an array"),
        ("[1, 2", "is not JSON"),
        ("", "is not JSON"),
        ("[1, -2]", "position 1: -2"),
        ("[1, 2.5]", "position 1: 2.5"),
        ("[\"1\"]", "position 0: \"1\""),
        ("[4294967296]", "position 0: 4294967296"),
        ("[1, 512]", "token id 512 at position 1"),
        (long.as_str(), "4097 tokens"),
    ] {
        let home = tempfile::tempdir().unwrap();
        fs::write(home.path().join("ids"), content).unwrap();
        let model = model.to_str().unwrap();
        check_failure(home.path(), &["logits", model, "--ids", "ids", "-o", "out", "--device", "cpu"], expected);
    }
    let home = tempfile::tempdir().unwrap();
    let model = model.to_str().unwrap();
    check_failure(home.path(), &["logits", model, "--ids", "none", "-o", "out", "--device", "cpu"], "cannot be read");
}

#[test]
fn bad_texts_are_an_error_with_a_hint() {
    let (model, text) = model_and_text();
    let arguments = ["perplexity", ".", "--text", "bad", "--device", "cpu"];
    for (content, expected) in [(&b""[..], "too few tokens: 0"), (b"t1", "too few tokens: 1"), (b"t1 \xff", "byte 3")] {
        fs::write(model.path().join("bad"), content).unwrap();
        check_failure(model.path(), &arguments, expected);
    }
    fs::write(model.path().join("bad"), format!("{text} ").repeat(200)).unwrap();
    check_failure(model.path(), &[&arguments[..], &["--window", "9999"]].concat(), "the model accepts 1 to");
    fs::remove_file(model.path().join("tokenizer.json")).unwrap();
    check_failure(model.path(), &arguments, "tokenizer.json");
}

#[test]
fn bench_reports_the_same_in_every_format() {
    let model = testdata("llama").join("q4f16_1");
    for device in devices() {
        let home = tempfile::tempdir().unwrap();
        let run = |form: &str| {
            let model = model.to_str().unwrap();
            let arguments = ["bench", model, "-p", "40", "-n", "8", "-d", "0,30", "-r", "2", "-o", form, "--device"];
            let more: &[&str] = if form == "csv" { &[] } else { &["--roofline", "--at", "1GB/s"] };
            let output = chat_cli(home.path(), &[&arguments[..], &[device], more].concat());
            assert!(output.status.success(), "{form} on {device}: {}", text(&output.stderr));
            text(&output.stdout)
        };
        let report: Value = serde_json::from_str(&run("json")).unwrap();
        let found: Vec<_> =
            report.as_array().unwrap().iter().map(|t| (&t["n_prompt"], &t["n_gen"], &t["n_depth"])).collect();
        let expected = [(40, 0, 0), (0, 8, 0), (40, 0, 30), (0, 8, 30)].map(|(p, n, d)| (json!(p), json!(n), json!(d)));
        assert_eq!(found, expected.iter().map(|(p, n, d)| (p, n, d)).collect::<Vec<_>>());
        assert!(report.as_array().unwrap().iter().all(|test| test["samples_ns"].as_array().unwrap().len() == 2));
        let roofline = &report[3]["roofline"];
        if device != "cpu" && !roofline["gpu_seconds"].is_null() {
            // A token reads all matrices of the model, and at most half as many bytes of other data.
            let read: f64 = roofline["kernels"].as_array().unwrap().iter().map(|k| k["bytes"].as_f64().unwrap()).sum();
            let weights = report[3]["bytes_per_token"].as_f64().unwrap();
            assert!((weights..1.5 * weights).contains(&read), "{read} of {weights}: {roofline}");
        }
        let lines = run("csv").lines().map(|line| line.split(',').count()).collect::<Vec<_>>();
        assert!(lines.len() == 5 && lines[1] >= lines[0], "{lines:?}");
        assert!(run("md").contains("| tg8 @ d30 | "));
    }
    let home = tempfile::tempdir().unwrap();
    let output = chat_cli(home.path(), &["bench", "--shape", "gpt-5", "--device", "cpu"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("hint: shapes: llama-3.1-8b, llama-3.2-1b"), "{}", text(&output.stderr));
}
