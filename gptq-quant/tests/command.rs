//! `gptq-quant` as a program: what it writes, and how it fails.

mod common;

use std::path::Path;

use assert_cmd::Command;

use common::{prose, testdata, tiny_folder};

fn gptq_quant(folder: &Path) -> Command {
    let mut command = Command::cargo_bin("gptq-quant").unwrap();
    command.current_dir(folder).env("HF_HUB_OFFLINE", "1").env("HF_HOME", folder.join("hub"));
    command
}

/// Runs it, expects an error with these words, and no output folder.
fn check_fails(folder: &Path, args: &[&str], words: &[&str]) {
    let output = gptq_quant(folder).args(args).args(["-o", "out"]).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("error: ") && stderr.contains("\n\nhint: "), "{stderr}");
    for word in words {
        assert!(stderr.contains(word), "`{word}` is not in: {stderr}");
    }
    assert!(!folder.join("out/config.json").exists(), "{stderr}");
    assert!(!folder.join("out").exists(), "{stderr}");
}

#[test]
fn quantizes_on_text_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    tiny_folder(folder.path());
    let args = ["model", "-o", "out", "--samples", "6", "--seq-len", "40", "--grid", "q4f16_1"];
    let output = gptq_quant(folder.path()).args(args).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{stderr}");
    assert!(stderr.contains("layer   2 of 2"), "{stderr}");
    for file in ["config.json", "quantize_config.json", "model.safetensors", "tokenizer.json", "generation_config.json"]
    {
        assert!(folder.path().join("out").join(file).is_file(), "{file}");
    }
    // Nothing temporary is left.
    assert!(
        std::fs::read_dir(folder.path().join("out"))
            .unwrap()
            .all(|file| { !file.unwrap().file_name().to_string_lossy().starts_with('.') })
    );
}

#[test]
fn quantizes_on_a_file_and_converts() {
    let folder = tempfile::tempdir().unwrap();
    tiny_folder(folder.path());
    let text = "The quick brown fox jumps over the lazy dog, and the dog does not mind. ".repeat(60);
    std::fs::write(folder.path().join("text.txt"), &text).unwrap();
    let lines: String = (0..40).map(|i| format!("{}\n", serde_json::json!({ "text": &text[i..i + 400] }))).collect();
    std::fs::write(folder.path().join("text.jsonl"), lines).unwrap();
    for (i, calib) in ["text.txt", "text.jsonl"].into_iter().enumerate() {
        let (out, mlc) = (format!("out{i}"), format!("mlc{i}"));
        let args = ["model", "-o", &out, "--calib", calib, "--seq-len", "64", "--group-size", "64"];
        let mlc_args = ["--to-mlc", &mlc, "--conv-template", "chatml"];
        let output = gptq_quant(folder.path()).args(args).args(mlc_args).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let stdout = String::from_utf8(output.stdout).unwrap();
        assert!(stdout.contains("8 matrices without loss"), "{stdout}");
        assert!(folder.path().join(mlc).join("mlc-chat-config.json").is_file());
    }
}

#[test]
fn a_conversion_that_could_not_be_done() {
    let folder = tempfile::tempdir().unwrap();
    tiny_folder(folder.path());
    check_fails(folder.path(), &["model", "--to-mlc", "mlc"], &["conversation template"]);
    assert!(!folder.path().join("mlc").exists());
}

#[test]
fn a_missing_calibration_file() {
    let folder = tempfile::tempdir().unwrap();
    tiny_folder(folder.path());
    check_fails(folder.path(), &["model", "--calib", "nowhere.txt"], &["nowhere.txt"]);
}

#[test]
fn a_text_that_is_too_short() {
    let folder = tempfile::tempdir().unwrap();
    tiny_folder(folder.path());
    std::fs::write(folder.path().join("text.txt"), "Once upon a time").unwrap();
    check_fails(folder.path(), &["model", "--calib", "text.txt"], &["tokens"]);
    check_fails(folder.path(), &["model", "--calib", "text.txt", "--samples", "9", "--seq-len", "4"], &["9 windows"]);
}

#[test]
fn a_weight_that_is_not_a_number() {
    let folder = tempfile::tempdir().unwrap();
    let model = tiny_folder(folder.path());
    let path = model.join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    // The last tensor's last element, bf16.
    let end = bytes.len();
    bytes[end - 2..].copy_from_slice(&[0xc0, 0x7f]);
    std::fs::write(&path, bytes).unwrap();
    check_fails(folder.path(), &["model", "--samples", "2", "--seq-len", "16"], &["NaN"]);
}

#[test]
fn a_truncated_file() {
    let folder = tempfile::tempdir().unwrap();
    let model = tiny_folder(folder.path());
    let path = model.join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    check_fails(folder.path(), &["model"], &["model.safetensors"]);
}

#[test]
fn a_model_that_is_quantized_already() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("model")).unwrap();
    let source = std::fs::read_dir(testdata("gptq")).unwrap().map(|entry| entry.unwrap().path());
    let source = source.filter(|path| path.join("config.json").is_file()).min().unwrap();
    let source = source.to_str().unwrap();
    check_fails(folder.path(), &[source], &["quantized already"]);
}

#[test]
fn a_model_that_is_not_there() {
    let folder = tempfile::tempdir().unwrap();
    check_fails(folder.path(), &["./nowhere"], &["nowhere"]);
}

#[test]
fn contradictions_are_usage_errors() {
    let folder = tempfile::tempdir().unwrap();
    for args in [
        &["m", "-o", "out", "--grid", "q4f16_1", "--bits", "8"][..],
        &["m", "-o", "out", "--bits", "5"],
        &["m", "-o", "out", "--group-size", "0"],
        &["m", "-o", "out", "--damp-percent", "2"],
        &["m"],
    ] {
        let output = gptq_quant(folder.path()).args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn sources_are_mixed() {
    let folder = tempfile::tempdir().unwrap();
    tiny_folder(folder.path());
    std::fs::write(folder.path().join("text.txt"), prose(1, 300)).unwrap();
    std::fs::copy(testdata("calib/text.parquet"), folder.path().join("rows.parquet")).unwrap();
    std::fs::write(folder.path().join("other.txt"), prose(2, 300)).unwrap();
    let args = ["model", "-o", "out", "--calib", "text.txt=4", "--calib", "rows.parquet=2", "--calib", "self=2"];
    let more = ["--samples", "8", "--seq-len", "64", "--group-size", "64", "--eval", "other.txt"];
    let output = gptq_quant(folder.path()).args(args).args(more).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{stderr}");
    assert!(stderr.contains("4 of `text.txt`, 2 of `rows.parquet`, 2 of `self`"), "{stderr}");
    assert!(stderr.contains("calibrating on 8 windows of 64 tokens"), "{stderr}");
}

#[test]
fn a_text_to_measure_on_that_is_calibrated_on() {
    let folder = tempfile::tempdir().unwrap();
    tiny_folder(folder.path());
    std::fs::write(folder.path().join("clean.txt"), prose(1, 300)).unwrap();
    let held_out = prose(2, 300);
    std::fs::write(folder.path().join("eval.txt"), &held_out).unwrap();
    // A part of it stands in the middle of another text.
    let from = held_out.len() / 3;
    let leak = format!("{}{}{}", prose(3, 300), &held_out[from..from + 3000], prose(4, 300));
    std::fs::write(folder.path().join("leak.jsonl"), serde_json::json!({ "text": leak }).to_string()).unwrap();
    let args = ["model", "--calib", "clean.txt", "--calib", "leak.jsonl", "--eval", "eval.txt", "--seq-len", "128"];
    check_fails(folder.path(), &args, &["`leak.jsonl` has 64 tokens in a row in common with `eval.txt`"]);
    check_fails(folder.path(), &["model", "--calib", "wikitext2:test"], &["wikitext2:test", "measured"]);
    check_fails(
        folder.path(),
        &["model", "--calib", "wikitext2"],
        &["Salesforce/wikitext", "train-00000-of-00001.parquet"],
    );
    check_fails(folder.path(), &["model", "--calib", "clean.txt=none"], &["not a share"]);
    check_fails(
        folder.path(),
        &["model", "--calib", "clean.txt", "--calib-column", "body", "--calib", "leak.jsonl"],
        &["`body`"],
    );
}
