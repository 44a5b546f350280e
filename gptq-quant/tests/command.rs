//! `gptq-quant` as a program: its output and its errors.

mod common;

use std::path::Path;

use assert_cmd::Command;

use common::{device, prose, testdata, tiny_folder};

fn gptq_quant(folder: &Path) -> Command {
    let mut command = Command::cargo_bin("gptq-quant").unwrap();
    command.current_dir(folder).env("HF_HUB_OFFLINE", "1").env("HF_HOME", folder.join("hub"));
    command
}

/// Runs the program. Expects an error with these words and no output folder.
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
fn quantizes_on_text_that_the_model_writes() {
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
    // No temporary file remains.
    assert!(
        std::fs::read_dir(folder.path().join("out"))
            .unwrap()
            .all(|file| { !file.unwrap().file_name().to_string_lossy().starts_with('.') })
    );
}

#[test]
fn quantizes_on_files_and_converts_to_mlc() {
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
fn impossible_conversion_fails_before_the_work() {
    let folder = tempfile::tempdir().unwrap();
    tiny_folder(folder.path());
    check_fails(folder.path(), &["model", "--to-mlc", "mlc"], &["conversation template"]);
    assert!(!folder.path().join("mlc").exists());
}

#[test]
fn missing_calibration_file_is_named() {
    let folder = tempfile::tempdir().unwrap();
    tiny_folder(folder.path());
    check_fails(folder.path(), &["model", "--calib", "nowhere.txt"], &["nowhere.txt"]);
}

#[test]
fn short_calibration_text_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    tiny_folder(folder.path());
    std::fs::write(folder.path().join("text.txt"), "Once upon a time").unwrap();
    check_fails(folder.path(), &["model", "--calib", "text.txt"], &["tokens"]);
    check_fails(folder.path(), &["model", "--calib", "text.txt", "--samples", "9", "--seq-len", "4"], &["9 windows"]);
}

#[test]
fn nan_weight_is_an_error() {
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
fn truncated_weights_are_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let model = tiny_folder(folder.path());
    let path = model.join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    check_fails(folder.path(), &["model"], &["model.safetensors"]);
}

#[test]
fn quantized_model_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("model")).unwrap();
    let source = std::fs::read_dir(testdata("gptq")).unwrap().map(|entry| entry.unwrap().path());
    let source = source.filter(|path| path.join("config.json").is_file()).min().unwrap();
    let source = source.to_str().unwrap();
    check_fails(folder.path(), &[source], &["quantized already"]);
}

#[test]
fn missing_model_is_named() {
    let folder = tempfile::tempdir().unwrap();
    check_fails(folder.path(), &["./nowhere"], &["nowhere"]);
}

#[test]
fn contradicting_options_are_usage_errors() {
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

/// Runs the program into a folder that holds `files`. `expected`: words of the error, which leaves all files unchanged; or files
/// that a successful run removes.
fn check_output_folder(files: &[(&str, &str)], more: &[&str], expected: Result<&[&str], &[&str]>) {
    let folder = tempfile::tempdir().unwrap();
    tiny_folder(folder.path());
    let out = folder.path().join("out");
    std::fs::create_dir(&out).unwrap();
    for (name, content) in files {
        std::fs::write(out.join(name), content).unwrap();
    }
    let args = ["model", "-o", "out", "--samples", "2", "--seq-len", "16", "--group-size", "32", "--device", "cpu"];
    let output = gptq_quant(folder.path()).args(args).args(more).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    match expected {
        Err(words) => {
            assert_eq!(output.status.code(), Some(1), "{stderr}");
            for word in words.iter().chain(&["\n\nhint: "]) {
                assert!(stderr.contains(word), "`{word}` is not in: {stderr}");
            }
            for (name, content) in files {
                assert_eq!(std::fs::read_to_string(out.join(name)).unwrap(), *content);
            }
            assert_eq!(std::fs::read_dir(&out).unwrap().count(), files.len());
        }
        Ok(gone) => {
            assert!(output.status.success(), "{stderr}");
            assert!(gone.iter().all(|name| !out.join(name).exists()), "{gone:?}");
            let weights = std::fs::metadata(out.join("model.safetensors")).unwrap();
            assert!(weights.len() > 1000);
            // Its own output is replaced without a flag.
            let again = gptq_quant(folder.path()).args(args).args(["--damp-percent", "0.02"]).output().unwrap();
            assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
        }
    }
}

#[test]
fn output_folder_must_be_empty_or_of_an_earlier_run() {
    let gptq = r#"{"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 32}}"#;
    let sharded = [
        ("config.json", gptq),
        ("model.safetensors.index.json", "{}"),
        ("model-00001-of-00002.safetensors", "1"),
        ("model-00002-of-00002.safetensors", "2"),
        ("tokenizer.json", "{}"),
    ];
    check_output_folder(&[], &[], Ok(&[]));
    check_output_folder(
        &[("model.safetensors", "an unrelated one")],
        &[],
        Err(&["`model.safetensors`", "--overwrite"]),
    );
    check_output_folder(&[("thesis.tex", "x")], &[], Err(&["`thesis.tex`", "move them away"]));
    check_output_folder(&[("thesis.tex", "x")], &["--overwrite"], Err(&["`thesis.tex`", "move them away"]));
    check_output_folder(&sharded, &[], Err(&["`model-00001-of-00002.safetensors`", "--overwrite"]));
    check_output_folder(
        &sharded,
        &["--overwrite"],
        Ok(&["model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]),
    );
    let unquantized = [("config.json", "{}"), ("model.safetensors", "x")];
    check_output_folder(&unquantized, &["--overwrite"], Err(&["unquantized model"]));
    // A file added after a run is never removed.
    let folder = tempfile::tempdir().unwrap();
    tiny_folder(folder.path());
    let args = ["model", "-o", "out", "--samples", "2", "--seq-len", "16", "--group-size", "32", "--device", "cpu"];
    assert!(gptq_quant(folder.path()).args(args).output().unwrap().status.success());
    std::fs::write(folder.path().join("out/adapter.safetensors"), "mine").unwrap();
    let output = gptq_quant(folder.path()).args(args).arg("--restart").output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("`adapter.safetensors`") && !stderr.contains("`config.json`"), "{stderr}");
    assert_eq!(std::fs::read_to_string(folder.path().join("out/adapter.safetensors")).unwrap(), "mine");
    // The MLC folder is checked before the long work.
    let folder = tempfile::tempdir().unwrap();
    tiny_folder(folder.path());
    std::fs::create_dir(folder.path().join("mlc")).unwrap();
    std::fs::write(folder.path().join("mlc/thesis.tex"), "x").unwrap();
    check_fails(folder.path(), &["model", "--to-mlc", "mlc", "--conv-template", "chatml"], &["`thesis.tex`"]);
}

#[test]
fn unknown_devices_are_errors_and_gpu_is_a_device() {
    let folder = tempfile::tempdir().unwrap();
    tiny_folder(folder.path());
    check_fails(folder.path(), &["model", "--device", "no such device"], &["no such device", "chat-cli devices"]);
    check_fails(folder.path(), &["model", "--device", "77"], &["`77`"]);
    if device().is_some() {
        let args = ["model", "-o", "out", "--samples", "2", "--seq-len", "16", "--group-size", "32", "--device", "gpu"];
        let output = gptq_quant(folder.path()).args(args).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let report = std::fs::read_to_string(folder.path().join("out/quantize_report.json")).unwrap();
        assert!(!report.contains(r#""device": "the CPU""#), "{report}");
    }
}

#[test]
fn calibration_sources_are_mixed_by_count() {
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
fn calibrating_on_the_evaluation_text_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    tiny_folder(folder.path());
    std::fs::write(folder.path().join("clean.txt"), prose(1, 300)).unwrap();
    let held_out = prose(2, 300);
    std::fs::write(folder.path().join("eval.txt"), &held_out).unwrap();
    // A part of the evaluation text is in the middle of another text.
    let from = held_out.len() / 3;
    let leak = format!("{}{}{}", prose(3, 300), &held_out[from..from + 3000], prose(4, 300));
    std::fs::write(folder.path().join("leak.jsonl"), serde_json::json!({ "text": leak }).to_string()).unwrap();
    let args = ["model", "--calib", "clean.txt", "--calib", "leak.jsonl", "--eval", "eval.txt", "--seq-len", "128"];
    check_fails(folder.path(), &args, &["`leak.jsonl` shares 64 consecutive tokens with `eval.txt`"]);
    check_fails(folder.path(), &["model", "--calib", "wikitext2:test"], &["wikitext2:test", "reserved for evaluation"]);
    check_fails(
        folder.path(),
        &["model", "--calib", "wikitext2"],
        &["Salesforce/wikitext", "train-00000-of-00001.parquet"],
    );
    check_fails(folder.path(), &["model", "--calib", "clean.txt=none"], &["not a positive number"]);
    check_fails(
        folder.path(),
        &["model", "--calib", "clean.txt", "--calib-column", "body", "--calib", "leak.jsonl"],
        &["`body`"],
    );
}
