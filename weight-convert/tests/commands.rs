//! The program: its commands under all their names, its exit codes, and what it says.

mod common;

use std::{fs, path::Path, process::Output};

use assert_cmd::Command;
use common::{names, read, testdata, tiny_llama};

fn run(arguments: &[&str]) -> Output {
    let mut command = Command::cargo_bin("weight-convert").unwrap();
    // A name that is no path must not be looked for on the hub.
    command.env("HF_HUB_OFFLINE", "1").args(arguments).output().unwrap()
}

fn check_error(arguments: &[&str], code: i32, messages: &[&str]) {
    let output = run(arguments);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    for message in messages {
        assert!(stderr.contains(message), "{stderr}");
    }
    assert!(output.stdout.is_empty());
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn mlcs_two_commands_give_what_convert_gives() {
    let llama = tiny_llama();
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    let config = llama.path().join("config.json");
    let template = ["--conv-template", "llama-3_1"];

    let output = run(&[["convert", text(llama.path()), "-o", text(&one)].as_slice(), &template].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for spelling in ["convert_weight", "convert-weight"] {
        let flags =
            ["--quantization", "q4f16_1", "--device", "cpu", "--model-type", "llama", "--source", text(llama.path())];
        let output = run(&[[spelling, text(&config), "--output", text(&two)].as_slice(), &flags].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    for spelling in ["gen_config", "gen-config"] {
        let flags = ["--quantization", "q4f16_1", "-o", text(&two)];
        let output = run(&[[spelling, text(llama.path())].as_slice(), &flags, &template].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let expected = [
        "mlc-chat-config.json",
        "ndarray-cache.json",
        "params_shard_0.bin",
        "tensor-cache.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    assert_eq!(names(&one), expected);
    assert_eq!(names(&two), expected);
    for name in expected {
        assert!(read(one.join(name)) == read(two.join(name)), "{name}");
    }
    assert_eq!(read(one.join("mlc-chat-config.json")), read(testdata("mlc/arch-llama/q4f16_1/mlc-chat-config.json")));

    let output = run(&["inspect", text(&one), "--tensors"]);
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(stdout.contains("q4f16_1") && stdout.contains("model.layers.1.mlp.down_proj.q_scale"), "{stdout}");
    assert!(run(&["verify", text(llama.path()), text(&one)]).status.success());
}

#[test]
fn verify_exits_with_3_when_the_weights_differ() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let gptq = testdata("gptq/llama-sym-g128-v1");
    let output = run(&["convert_weight", text(&gptq), "--quantization", "q4f16_1", "-o", text(&out)]);
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(stdout.contains("8 matrices keep the values of the GPTQ checkpoint exactly"), "{stdout}");
    assert!(
        stdout.contains("rounded to nearest, because") && stdout.contains("`model.embed_tokens.weight`"),
        "{stdout}"
    );
    assert!(run(&["verify", text(&gptq), text(&out)]).status.success());
    // The same architecture, other weights.
    let output = run(&["verify", text(&testdata("gptq/llama-sym-g32-v1")), text(&out)]);
    assert_eq!(output.status.code(), Some(3));
    assert!(String::from_utf8(output.stdout).unwrap().contains("DIFFERENT"));
}

#[test]
fn errors_name_what_is_wrong_and_leave_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let llama = tiny_llama();
    let source = text(llama.path());
    check_error(&["convert", source], 2, &["--output"]);
    check_error(
        &["convert", source, "-o", text(&out)],
        1,
        &["cannot tell which conversation template", "hint: name one"],
    );
    check_error(&["convert", source, "-o", text(&out), "--quantization", "q5"], 1, &["`q5`", "hint: formats: q4f16_1"]);
    check_error(
        &["convert", source, "-o", text(&out), "--conv-template", "chatmel"],
        1,
        &["unknown conversation template: `chatmel`", "hint: templates: "],
    );
    check_error(&["inspect", text(folder.path())], 1, &["`tensor-cache.json` is missing in"]);
    for (format, message) in
        [("awq", "AWQ"), ("huggingface-torch", "PyTorch"), ("huggingface-gptq", "not a GPTQ checkpoint")]
    {
        let arguments =
            ["convert_weight", source, "--quantization", "q0f16", "-o", text(&out), "--source-format", format];
        check_error(&arguments, 1, &[message]);
    }
    fs::remove_file(llama.path().join("tokenizer.json")).unwrap();
    let arguments = ["convert", source, "-o", text(&out), "--conv-template", "chatml"];
    check_error(&arguments, 1, &["`tokenizer.json` is missing in"]);
    let weights = llama.path().join("model.safetensors");
    fs::write(&weights, &read(&weights)[..100_000]).unwrap();
    check_error(&arguments, 1, &["model.safetensors` has 100000 bytes, expected 724288", "hint: the file is damaged"]);
    assert!(!out.exists());
}
