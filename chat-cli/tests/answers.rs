//! The program from outside with a tiny model of random weights: what it says makes no sense, but must be the same
//! whichever way it is asked.

use std::path::Path;
use std::process::Output;

use assert_cmd::Command;
use serde_json::Value;
use tempfile::TempDir;

/// An MLC folder with a tokenizer beside it.
fn model() -> TempDir {
    let testdata = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata");
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(testdata.join("arch/llama/q4f16_1")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    std::fs::copy(testdata.join("tokenizer/tiny-bpe/tokenizer.json"), folder.path().join("tokenizer.json")).unwrap();
    // The template is that of a large vocabulary, whose first token this one does not have.
    let path = folder.path().join("mlc-chat-config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config["conv_template"]["system_prefix_token_ids"] = Value::Null;
    config["conv_template"]["system_message"] = "".into();
    std::fs::write(&path, config.to_string()).unwrap();
    folder
}

fn chat(model: &TempDir, arguments: &[&str], stdin: &str) -> Output {
    let mut command = Command::cargo_bin("chat-cli").unwrap();
    command.env("HOME", model.path()).env_remove("XDG_STATE_HOME").arg("chat").arg(model.path());
    command.args(["--device", "cpu", "--context", "512"]).args(arguments).write_stdin(stdin).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Standard output of a run that succeeds.
fn out(model: &TempDir, arguments: &[&str], stdin: &str) -> String {
    let output = chat(model, arguments, stdin);
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

fn json(model: &TempDir, arguments: &[&str]) -> Value {
    let mut all = vec!["--json", "--max-tokens", "12"];
    all.extend(arguments);
    serde_json::from_str(&out(model, &all, "from stdin")).unwrap()
}

#[test]
fn every_way_of_asking_gives_the_same_answer() {
    let model = model();
    let greedy = ["--temperature", "0", "--max-tokens", "12"];
    let report = json(&model, &["-p", "from stdin", "--temperature", "0"]);
    let answer = report["text"].as_str().unwrap();
    assert_eq!(report["token_ids"].as_array().unwrap().len(), 12);
    assert_eq!(report["finish_reason"], "length");
    assert_eq!(report["stats"]["generated_tokens"], 12);
    assert_eq!(report["stats"]["prompt_tokens"], report["prompt_token_ids"].as_array().unwrap().len());
    assert_eq!(report["device"], "the CPU");

    let with = |arguments: &[&str], stdin: &str| out(&model, &[&greedy[..], arguments].concat(), stdin);
    assert_eq!(with(&["-p", "from stdin"], ""), format!("{answer}\n"));
    assert_eq!(with(&["-p", "-"], "from stdin\n"), format!("{answer}\n"));
    assert_eq!(with(&[], "from stdin\n"), format!("{answer}\n"));
    assert_eq!(
        with(&["-q"], "/set temperature=1\n/set temperature=0\nfrom stdin\n/exit\nnot read\n"),
        format!("{answer}\n")
    );
    assert_eq!(json(&model, &["-p", "-", "--temperature", "0"])["token_ids"], report["token_ids"]);
}

#[test]
fn a_seed_repeats_an_answer() {
    let model = model();
    let ids = |seed: &str| json(&model, &["-p", "x", "--temperature", "1.5", "--seed", seed])["token_ids"].clone();
    assert_eq!(ids("1"), ids("1"));
    assert_ne!(ids("1"), ids("2"));
}

#[test]
fn a_full_context_is_said_or_shifts() {
    let model = model();
    let run = |arguments: &[&str]| {
        let all = [&["--json", "-p", "x", "--temperature", "0", "--context", "160"], arguments].concat();
        let mut command = Command::cargo_bin("chat-cli").unwrap();
        command.env("HOME", model.path()).arg("chat").arg(model.path()).args(["--device", "cpu"]);
        let output = command.args(all).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    assert_eq!(run(&[])["finish_reason"], "context_full");
    let shifted = run(&["--shift", "--max-tokens", "200"]);
    assert_eq!((&shifted["finish_reason"], shifted["token_ids"].as_array().unwrap().len()), (&"length".into(), 200));
}

#[test]
fn a_bias_decides_and_logprobs_tell() {
    let model = model();
    let report = json(&model, &["-p", "x", "--temperature", "0", "--logit-bias", "65=100", "--logprobs", "2"]);
    assert!(report["token_ids"].as_array().unwrap().iter().all(|id| id == 65), "{report}");
    let logprobs = report["logprobs"].as_array().unwrap();
    assert_eq!(logprobs.len(), 12);
    // The model's own distribution: the bias is not in it.
    assert!(logprobs.iter().all(|token| token["top"].as_array().unwrap().len() == 2 && token["token_id"] == 65));
    assert!(logprobs[0]["logprob"].as_f64().unwrap() < logprobs[0]["top"][0]["logprob"].as_f64().unwrap());
    assert_eq!(json(&model, &["-p", "x"])["logprobs"], Value::Null);
}

#[test]
fn later_turns_run_only_what_is_new() {
    let model = model();
    let arguments = ["--temperature", "0", "--max-tokens", "8"];
    let output = chat(&model, &arguments, "one\n/stats\ntwo\n/stats\n/reset\none\n/stats\n");
    let (answers, reports) = (text(&output.stdout), text(&output.stderr));
    let stats: Vec<&str> = reports.lines().filter(|line| line.starts_with("prompt: ")).collect();
    assert_eq!(stats.len(), 3, "{reports}");
    assert_eq!(stats.iter().map(|line| line.contains("cached")).collect::<Vec<_>>(), [false, true, false], "{reports}");
    let answers: Vec<&str> = answers.split_inclusive('\n').collect();
    assert!(answers.len() >= 3, "{answers:?}");
}

#[test]
fn answers_stop_where_they_are_told_to() {
    let model = model();
    let whole = json(&model, &["-p", "x", "--temperature", "0"])["text"].as_str().unwrap().to_string();
    let middle: String = whole.chars().skip(4).take(3).collect();
    let report = json(&model, &["-p", "x", "--temperature", "0", "--stop", &middle]);
    assert_eq!(report["finish_reason"], "stop");
    assert_eq!(report["text"].as_str().unwrap(), &whole[..whole.find(&middle).unwrap()]);
}

#[test]
fn what_does_not_fit_is_an_error_with_a_hint() {
    let output = chat(&model(), &["-p", &"many words ".repeat(400)], "");
    let err = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{err}");
    assert!(err.contains("error: the conversation has ") && err.contains("\nhint: "), "{err}");
}

#[test]
fn a_broken_model_is_an_error_with_a_hint() {
    for (file, content) in [
        ("tokenizer.json", Some("{}")),
        ("tokenizer.json", None),
        ("mlc-chat-config.json", Some("{")),
        ("params_shard_0.bin", Some("short")),
        ("tensor-cache.json", Some("{}")),
    ] {
        let model = model();
        let path = model.path().join(file);
        match content {
            Some(content) => std::fs::write(&path, content).unwrap(),
            None => std::fs::remove_file(&path).unwrap(),
        }
        let output = chat(&model, &["-p", "x"], "");
        let err = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{file}: {err}");
        assert!(output.stdout.is_empty(), "{file}");
        assert!(err.contains("error: ") && err.contains("\nhint: "), "{file}: {err}");
    }
}

/// Changes a JSON file of the model.
fn edit(model: &TempDir, file: &str, change: impl FnOnce(&mut Value)) {
    let path = model.path().join(file);
    let mut json: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut json);
    std::fs::write(&path, json.to_string()).unwrap();
}

/// The error of a run that fails, which says all of `expected` and is no panic.
fn check_refused(model: &TempDir, arguments: &[&str], expected: &[&str]) {
    let output = chat(model, arguments, "");
    let err = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{err}");
    assert!(output.stdout.is_empty() && !err.contains("panicked"), "{err}");
    for expected in ["error: ", "\nhint: "].iter().chain(expected) {
        assert!(err.contains(expected), "{expected:?} in {err}");
    }
}

/// The model with three more tokens in its tokenizer than its embedding table has rows; two of them are not special, so that they
/// are read wherever a text has them.
fn model_with_three_tokens_too_many() -> TempDir {
    let model = model();
    edit(&model, "tokenizer.json", |json| {
        for (id, content, special) in [(512, "<|extra|>", true), (513, "<tool>", false), (514, "</tool>", false)] {
            json["added_tokens"].as_array_mut().unwrap().push(serde_json::json!({
                "id": id, "content": content, "special": special, "normalized": false, "lstrip": false, "rstrip": false,
                "single_word": false,
            }));
        }
    });
    model
}

#[test]
fn a_token_beyond_the_embedding_table_is_an_error_where_it_would_be_run() {
    let greedy = ["--temperature", "0", "--max-tokens", "4", "-p"];
    let with = |arguments: &[&'static str]| [&greedy[..], arguments].concat();
    let expected = out(&model(), &with(&["Hello"]), "");
    let model = model_with_three_tokens_too_many();
    // To have them is no error, nor is a special one that a person types: it is plain text.
    assert_eq!(out(&model, &with(&["Hello"]), ""), expected);
    out(&model, &with(&["<|extra|>"]), "");
    check_refused(&model, &with(&["a <tool> b"]), &["token `<tool>` (id 513) at position ", "table of 512 rows"]);
    check_refused(&model, &with(&["<|extra|>", "--control-tokens"]), &["token `<|extra|>` (id 512)", "512 rows"]);
    check_refused(
        &model,
        &with(&["x", "--logit-bias", "514=1"]),
        &["`logit_bias` must hold token ids below 512", "514"],
    );

    // What stops an answer is never run.
    edit(&model, "mlc-chat-config.json", |json| {
        json["eos_token_id"] = serde_json::json!([1, 2, 128_001]);
        json["conv_template"]["stop_token_ids"] = serde_json::json!([128_009, 4_000_000_000u32]);
    });
    assert_eq!(out(&model, &with(&["Hello"]), ""), expected);
}

#[test]
fn a_template_that_writes_a_token_beyond_the_embedding_table_is_refused_when_it_is_loaded() {
    let model = model_with_three_tokens_too_many();
    edit(&model, "mlc-chat-config.json", |json| json["conv_template"]["system_prefix_token_ids"] = [128_000].into());
    let file = "in `mlc-chat-config.json` must hold tokens with ids below 512";
    check_refused(&model, &["-p", "x"], &["`conv_template.system_prefix_token_ids` ", file, "found: token id 128000"]);

    edit(&model, "mlc-chat-config.json", |json| {
        json["conv_template"]["system_prefix_token_ids"] = Value::Null;
        json["conv_template"]["roles"]["user"] = "<|extra|>user".into();
    });
    check_refused(&model, &["-p", "x"], &["`conv_template` ", file, "found: token `<|extra|>` (id 512)"]);

    // A Jinja template is used instead of MLC's, whose ids do not matter then.
    let jinja = model.path().join("chat_template.jinja");
    std::fs::write(&jinja, "{% for m in messages %}{{ m.content }}{% endfor %}").unwrap();
    out(&model, &["-p", "x", "--max-tokens", "2"], "");
    std::fs::write(&jinja, "{% for m in messages %}<tool>{{ m.content }}{% endfor %}").unwrap();
    check_refused(&model, &["-p", "x"], &["`chat_template` in `chat_template.jinja`", "token `<tool>` (id 513)"]);
}

/// The `tokenizers` crate panics on it: a piece is shorter than the prefix that it should begin with.
#[test]
fn a_panic_of_the_tokenizers_crate_is_an_error_like_any_other() {
    let json = r#"{"version": "1.0", "model": {"type": "BPE", "continuing_subword_prefix": "++++", "merges": ["a b"],
        "vocab": {"a": 0, "b": 1, "ab": 2}}}"#;
    let here = infer_core::Tokenizer::from_bytes(json.as_bytes());
    assert!(matches!(here, Err(infer_core::Error::Tokenizer { .. })));
    let model = model();
    std::fs::write(model.path().join("tokenizer.json"), json).unwrap();
    check_refused(&model, &["-p", "x"], &["error: the tokenizer failed: ", "`tokenizer.json`"]);
}

#[test]
fn settings_say_who_chose_them() {
    let model = model();
    let set = |arguments: &[&str]| {
        let output = chat(&model, arguments, "/set\n");
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stderr).lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>()
    };
    let check = |shown: &[String], expected: &[&str]| {
        expected.iter().for_each(|line| assert!(shown.iter().any(|shown| shown == line), "{line} in {shown:?}"));
    };
    // The file recommends temperature 0.7 and top-p 0.9.
    let shown = set(&["--seed", "3", "--max-tokens", "none"]);
    check(
        &shown,
        &["temperature 0.7 model", "top_p 0.9 model", "min_p 0.05 default", "seed 3 you", "max_tokens none you"],
    );
    edit(&model, "mlc-chat-config.json", |json| {
        json["temperature"] = 1.0.into();
        json["top_p"] = 1.0.into();
    });
    let shown = set(&["--min-p", "0"]);
    check(&shown, &["temperature 0.7 default", "top_p 0.95 default", "min_p 0 you", "max_tokens 2048 default"]);
}

/// On a machine whose only GPUs are played by its processor, this is the CPU; with a GPU, that one.
#[test]
fn left_to_choose_no_software_device_is_taken() {
    let model = model();
    let run = |arguments: &[&str]| {
        let mut command = Command::cargo_bin("chat-cli").unwrap();
        let output = command.env("HOME", model.path()).args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    let devices = run(&["devices", "--json"]);
    let real = devices.as_array().unwrap().iter().find(|device| device["is_software"] == false);
    let folder = model.path().to_str().unwrap();
    let arguments = ["chat", folder, "--device", "auto", "--context", "512", "--json", "-p", "x", "--max-tokens", "1"];
    let expected = real.map_or("the CPU".into(), |device| device["name"].clone());
    assert_eq!(run(&arguments)["device"], expected);
}

/// Rounding activations, and keys and values, changes logprobs and is chosen by flags; a model in codes is rounded by default.
#[test]
fn products_and_cache_of_the_cpu_are_chosen_by_flags() {
    let model = model();
    let logprob = |arguments: &[&str]| {
        let all = [&["-p", "x", "--temperature", "0", "--logprobs", "1"], arguments].concat();
        json(&model, &all)["logprobs"][0]["logprob"].as_f64().unwrap()
    };
    let exact = logprob(&["--cpu-weights", "exact"]);
    for other in [&["--cpu-weights", "integer"][..], &["--cpu-weights", "exact", "--cache", "q8"]] {
        let difference = (logprob(other) - exact).abs();
        assert!(difference > 0.0 && difference < 0.1, "{other:?}: {difference}");
    }
    assert_eq!(logprob(&[]), logprob(&["--cpu-weights", "integer", "--cache", "f32"]));
    assert_eq!(logprob(&["--cpu-weights", "exact", "--cache", "f32"]), exact);
}
