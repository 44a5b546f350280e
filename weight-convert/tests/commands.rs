//! The program from outside: its commands under all names, exit codes and messages.

mod common;

use std::{fs, path::Path, process::Output};

use assert_cmd::Command;
use common::{names, read, testdata, tiny_llama};
use serde_json::Value;

fn run(arguments: &[&str]) -> Output {
    let mut command = Command::cargo_bin("weight-convert").unwrap();
    // Keep names that are no paths from being looked up on the hub.
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
fn mlcs_two_commands_give_the_same_as_convert() {
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
    // The same architecture with other weights.
    let output = run(&["verify", text(&testdata("gptq/llama-sym-g32-v1")), text(&out)]);
    assert_eq!(output.status.code(), Some(3));
    assert!(String::from_utf8(output.stdout).unwrap().contains("DIFFERENT"));
}

#[test]
fn errors_name_the_fault_and_leave_no_files() {
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

fn json(arguments: &[&str]) -> Value {
    let output = run(arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_dry_run_lists_every_file_and_its_size() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let llama = tiny_llama();
    for quantization in ["q4f16_1", "q4f32_1", "q3f16_0", "q0bf16"] {
        let arguments = [
            ["convert", text(llama.path()), "-o", text(&out)].as_slice(),
            &["--conv-template", "chatml", "--quantization", quantization, "--shard-size", "1"],
        ]
        .concat();
        let plan = json(&[&arguments[..], &["--dry-run", "--json"]].concat());
        assert!(!out.exists());
        let report = json(&[&arguments[..], &["--json"]].concat());
        let files = |report: &Value| [&report["weights"]["files"], &report["config"]["files"]].map(Value::clone);
        assert_eq!(files(&plan), files(&report));
        let mut listed: Vec<(String, u64)> = files(&plan)
            .iter()
            .flat_map(|files| files.as_array().unwrap())
            .map(|file| (file["name"].as_str().unwrap().to_owned(), file["bytes"].as_u64().unwrap()))
            .collect();
        listed.sort();
        let written: Vec<(String, u64)> =
            names(&out).into_iter().map(|name| (name.clone(), fs::metadata(out.join(name)).unwrap().len())).collect();
        assert_eq!(listed, written, "{quantization}");
        assert_eq!(plan["total_bytes"].as_u64().unwrap(), written.iter().map(|(_, bytes)| bytes).sum::<u64>());
        let output = run(&[&arguments[..], &["--dry-run"]].concat());
        assert!(
            String::from_utf8(output.stdout).unwrap().contains("would write 23 tensors") || quantization == "q0bf16"
        );
        fs::remove_dir_all(&out).unwrap();
    }
}

#[test]
fn reports_are_json_with_the_flag() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let gptq = testdata("gptq/llama-asym-g32-v1");
    let convert = ["convert_weight", text(&gptq), "--quantization", "q4f16_1", "-o", text(&out)];
    check_error(&convert, 1, &["cannot be converted without loss: row 0, group", "hint: `--refit` takes"]);
    let report = json(&[&convert[..], &["--refit", "--json"]].concat());
    assert_eq!(report["refitted"].as_array().unwrap().len(), 14);
    assert!(report["refitted"][0]["relative_error"].as_f64().unwrap() > 0.0);
    let contents = json(&["inspect", text(&out), "--json"]);
    assert_eq!(contents["shards"][0]["tensors"].as_array().unwrap().len(), 23);
    let verification = json(&["verify", text(&gptq), text(&out), "--json"]);
    assert_eq!((verification["failures"].as_u64(), verification["params"].as_array().unwrap().len()), (Some(0), 14));
    let llama = tiny_llama();
    let arguments = ["gen_config", text(llama.path()), "--quantization", "q0f32", "-o", text(&out), "--json"];
    let config = json(&[&arguments[..], &["--conv-template", "LM"]].concat());
    assert_eq!(config["conv_template"], "LM");
}

#[test]
fn verify_has_limits() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let llama = testdata("arch/llama/hf");
    let convert = ["convert_weight", text(&llama), "--quantization", "q4f16_1", "-o", text(&out)];
    assert!(run(&convert).status.success());
    let check = |flags: &[&str], code: i32| {
        let output = run(&[&["verify", text(&llama), text(&out)], flags].concat());
        let stdout = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(code), "{flags:?}: {stdout}");
        stdout.contains("FURTHER")
    };
    assert!(!check(&["--max-error", "1.0", "--mean-error", "0.1"], 0));
    assert!(check(&["--max-error", "0.001"], 3));
    assert!(check(&["--mean-error", "0.000001"], 3));
}

/// A template is wrong if its stop tokens are not in the tokenizer.
#[test]
fn a_wrong_template_is_refused_and_the_right_one_named() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let llama = tiny_llama();
    let path = llama.path().join("tokenizer.json");
    let mut tokenizer: Value = serde_json::from_slice(&read(&path)).unwrap();
    for (id, content) in [(151643, "<|endoftext|>"), (151644, "<|im_start|>"), (151645, "<|im_end|>")] {
        tokenizer["added_tokens"].as_array_mut().unwrap().push(serde_json::json!({"id": id, "content": content}));
    }
    fs::write(&path, tokenizer.to_string()).unwrap();
    let convert = |template: &str, flags: &[&str]| {
        let arguments = [
            "gen_config",
            text(llama.path()),
            "--quantization",
            "q4f16_1",
            "-o",
            text(&out),
            "--conv-template",
            template,
        ];
        run(&[&arguments[..], flags].concat())
    };
    for wrong in ["llama-3_1", "gemma3_instruction", "phi-4"] {
        let output = convert(wrong, &[]);
        let stderr = String::from_utf8(output.stderr).unwrap();
        // The tiny tokenizer has tokens 1 and 2, which end this template's answers.
        if wrong == "gemma3_instruction" {
            assert!(output.status.success(), "{stderr}");
            continue;
        }
        assert_eq!(output.status.code(), Some(1), "{wrong}");
        assert!(stderr.contains(&format!("conversation template `{wrong}` does not fit")), "{stderr}");
        assert!(stderr.contains("hint: this model's template is `qwen2`"), "{stderr}");
        assert!(convert(wrong, &["--mlc-compat"]).status.success());
    }
    assert!(convert("qwen2", &[]).status.success());
}
