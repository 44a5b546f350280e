//! Usage, exit codes and messages of the program that need no model.

use std::{path::PathBuf, process::Output};

use assert_cmd::Command;

/// Runs `chat-cli` offline in a temporary folder, which is also its home. The driver keeps its usual shader cache: a software driver
/// takes a minute to compile all kernels, and other tests need them too.
fn chat_cli(arguments: &[&str]) -> Output {
    let folder = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let of_user = || folder("XDG_CACHE_HOME").or_else(|| Some(folder("HOME")?.join(".cache")));
    let home = tempfile::tempdir().unwrap();
    let mut command = Command::cargo_bin("chat-cli").unwrap();
    command.current_dir(home.path()).env_clear().env("HOME", home.path()).env("HF_HUB_OFFLINE", "1");
    if let Some(cache) = folder("MESA_SHADER_CACHE_DIR").or_else(of_user) {
        command.env("MESA_SHADER_CACHE_DIR", cache);
    }
    command.args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn help_lists_flags_and_remedies() {
    for arguments in [&["--help"][..], &["chat", "--help"], &["devices", "--help"], &["help", "chat"]] {
        let output = chat_cli(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        assert!(text(&output.stdout).contains("Usage:"), "{arguments:?}");
    }
    let help = text(&chat_cli(&["chat", "--help"]).stdout);
    for flag in [
        "--prompt",
        "--system",
        "--json",
        "--device",
        "--context",
        "--temperature",
        "--top-p",
        "--top-k",
        "--min-p",
        "--repetition-penalty",
        "--seed",
        "--max-tokens",
        "--stop",
        "--quiet",
    ] {
        assert!(help.contains(flag), "{flag}");
    }
    for remedy in ["repeat", "--repetition-penalty 1.1", "[default: 2048]"] {
        assert!(help.contains(remedy), "{remedy}");
    }
    assert!(text(&chat_cli(&["--version"]).stdout).starts_with("chat-cli "));
}

#[test]
fn wrong_usage_exits_with_2_before_anything_is_loaded() {
    for arguments in [
        &[][..],
        &["chat"],
        &["talk"],
        &["chat", "m", "--nonsense"],
        &["chat", "m", "--json"],
        &["chat", "m", "--temperature", "-1"],
        &["chat", "m", "--temperature", "NaN"],
        &["chat", "m", "--temperature", "warm"],
        &["chat", "m", "--top-p", "0"],
        &["chat", "m", "--top-p", "1.5"],
        &["chat", "m", "--min-p", "2"],
        &["chat", "m", "--repetition-penalty", "0"],
        &["chat", "m", "--presence-penalty", "-3"],
        &["chat", "m", "--max-tokens", "0"],
        &["chat", "m", "--context", "0"],
        &["chat", "m", "--stop", ""],
        &["chat", "m", "--logit-bias", "1"],
        &["chat", "m", "--logit-bias", "1=101"],
        &["chat", "m", "--logprobs", "21"],
        &["devices", "all"],
        &["perplexity"],
        &["perplexity", "m", "--window", "1"],
        &["perplexity", "m", "--plain"],
        &["logits", "m", "--ids", "f"],
        &["chat", "m", "--memory", "-1"],
        &["selftest", "m"],
    ] {
        let output = chat_cli(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", text(&output.stderr));
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
}

/// Exit code 1, and on stderr an error that contains `expected`, then a hint.
fn check_failure(arguments: &[&str], expected: &str) {
    let output = chat_cli(arguments);
    let err = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {err}");
    assert!(output.stdout.is_empty(), "{arguments:?}");
    let error = err.lines().position(|line| line.starts_with("error: ") && line.contains(expected));
    let hint = err.lines().position(|line| line.starts_with("hint: "));
    assert!(error < hint && error.is_some(), "{arguments:?}: {err}");
}

#[test]
fn missing_models_and_devices_are_errors_with_hints() {
    check_failure(&["chat", "./no-such-folder", "-p", "x"], "no-such-folder");
    check_failure(&["chat", "nobody/no-such-model", "-p", "x"], "no-such-model");
    check_failure(&["chat", "m", "-p", "x", "--device", "no such GPU"], "no such GPU");
    check_failure(&["chat", "m", "-p", "x", "--device", "99"], "99");
    check_failure(&["selftest", "--device", "no such GPU"], "no such GPU");
    check_failure(&["selftest", "--device", "cpu"], "no kernels");
}

/// In an empty environment, a driver that looks for a display would print an error.
#[test]
fn no_window_system_is_needed() {
    let output = chat_cli(&["devices"]);
    assert_eq!(output.status.code(), Some(0));
    let errors = text(&output.stderr).to_lowercase();
    assert!(["xdg_", "wayland", "xcb", "display"].iter().all(|word| !errors.contains(word)), "{errors}");
}

#[test]
fn devices_are_listed_as_table_and_json() {
    let output = chat_cli(&["devices"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let table = text(&output.stdout);
    assert!(table.starts_with("DEVICE") && table.lines().any(|line| line.starts_with("cpu")), "{table}");
    let list: serde_json::Value = serde_json::from_slice(&chat_cli(&["devices", "--json"]).stdout).unwrap();
    assert_eq!(list.as_array().unwrap().len() + 2, table.lines().count());
}

#[test]
fn every_kernel_is_checked() {
    if text(&chat_cli(&["devices"]).stdout).lines().count() == 2 {
        assert!(std::env::var_os("REQUIRE_GPU").is_none(), "no GPU");
        eprintln!("skipped: no GPU");
        return;
    }
    let output = chat_cli(&["selftest", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let variants = report["variants"].as_array().unwrap();
    assert!(variants.len() > 100 && report["right"] == variants.len() && report["wrong"] == 0);
    for kernel in ["gemv", "gemm", "attention_decode", "rms_norm", "rope", "argmax"] {
        assert!(variants.iter().any(|line| line["kernel"] == kernel && line["nmse"].is_number()), "{kernel}");
    }
}
