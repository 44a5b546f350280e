//! Answers of `chat-cli chat` with a tiny model of random weights. They are nonsense, but equal for every way to ask.

#[path = "../../infer-core/tests/common/chat_model.rs"]
mod chat_model;

use std::process::Output;

use assert_cmd::Command;
use chat_model::model;
use serde_json::Value;
use tempfile::TempDir;

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
fn every_form_of_input_gives_the_same_answer() {
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
fn a_full_context_ends_the_answer_or_shifts() {
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
fn a_bias_changes_the_choice_but_not_the_logprobs() {
    let model = model();
    let report = json(&model, &["-p", "x", "--temperature", "0", "--logit-bias", "65=100", "--logprobs", "2"]);
    assert!(report["token_ids"].as_array().unwrap().iter().all(|id| id == 65), "{report}");
    let logprobs = report["logprobs"].as_array().unwrap();
    assert_eq!(logprobs.len(), 12);
    // Log probabilities are of the model's own distribution, without the bias.
    assert!(logprobs.iter().all(|token| token["top"].as_array().unwrap().len() == 2 && token["token_id"] == 65));
    assert!(logprobs[0]["logprob"].as_f64().unwrap() < logprobs[0]["top"][0]["logprob"].as_f64().unwrap());
    assert_eq!(json(&model, &["-p", "x"])["logprobs"], Value::Null);
}

#[test]
fn later_turns_run_only_new_tokens() {
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
fn answers_end_at_stop_strings() {
    let model = model();
    let whole = json(&model, &["-p", "x", "--temperature", "0"])["text"].as_str().unwrap().to_string();
    let middle: String = whole.chars().skip(4).take(3).collect();
    let report = json(&model, &["-p", "x", "--temperature", "0", "--stop", &middle]);
    assert_eq!(report["finish_reason"], "stop");
    assert_eq!(report["text"].as_str().unwrap(), &whole[..whole.find(&middle).unwrap()]);
}

#[test]
fn a_prompt_that_does_not_fit_is_an_error_with_a_hint() {
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

/// The run fails without a panic, and its error contains all of `expected`.
fn check_refused(model: &TempDir, arguments: &[&str], expected: &[&str]) {
    let output = chat(model, arguments, "");
    let err = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{err}");
    assert!(output.stdout.is_empty() && !err.contains("panicked"), "{err}");
    for expected in ["error: ", "\nhint: "].iter().chain(expected) {
        assert!(err.contains(expected), "{expected:?} in {err}");
    }
}

/// The tokenizer has three tokens more than the embedding table has rows. Two of them are not special, so they are parsed in any text.
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
fn a_token_beyond_the_embedding_table_is_an_error_in_a_prompt() {
    let greedy = ["--temperature", "0", "--max-tokens", "4", "-p"];
    let with = |arguments: &[&'static str]| [&greedy[..], arguments].concat();
    let expected = out(&model(), &with(&["Hello"]), "");
    let model = model_with_three_tokens_too_many();
    // Their existence is no error. A special token in user input is no error either: it is plain text.
    assert_eq!(out(&model, &with(&["Hello"]), ""), expected);
    out(&model, &with(&["<|extra|>"]), "");
    check_refused(&model, &with(&["a <tool> b"]), &["token `<tool>` (id 513) at position ", "table of 512 rows"]);
    check_refused(&model, &with(&["<|extra|>", "--control-tokens"]), &["token `<|extra|>` (id 512)", "512 rows"]);
    check_refused(
        &model,
        &with(&["x", "--logit-bias", "514=1"]),
        &["`logit_bias` must hold token ids below 512", "514"],
    );

    // Stop tokens are never run.
    edit(&model, "mlc-chat-config.json", |json| {
        json["eos_token_id"] = serde_json::json!([1, 2, 128_001]);
        json["conv_template"]["stop_token_ids"] = serde_json::json!([128_009, 4_000_000_000u32]);
    });
    assert_eq!(out(&model, &with(&["Hello"]), ""), expected);
}

#[test]
fn a_template_with_a_token_beyond_the_embedding_table_is_refused_at_load() {
    let model = model_with_three_tokens_too_many();
    edit(&model, "mlc-chat-config.json", |json| json["conv_template"]["system_prefix_token_ids"] = [128_000].into());
    let file = "in `mlc-chat-config.json` must hold tokens with ids below 512";
    check_refused(&model, &["-p", "x"], &["`conv_template.system_prefix_token_ids` ", file, "found: token id 128000"]);

    edit(&model, "mlc-chat-config.json", |json| {
        json["conv_template"]["system_prefix_token_ids"] = Value::Null;
        json["conv_template"]["roles"]["user"] = "<|extra|>user".into();
    });
    check_refused(&model, &["-p", "x"], &["`conv_template` ", file, "found: token `<|extra|>` (id 512)"]);

    // A Jinja template replaces MLC's, so the ids of the latter do not matter.
    let jinja = model.path().join("chat_template.jinja");
    std::fs::write(&jinja, "{% for m in messages %}{{ m.content }}{% endfor %}").unwrap();
    out(&model, &["-p", "x", "--max-tokens", "2"], "");
    std::fs::write(&jinja, "{% for m in messages %}<tool>{{ m.content }}{% endfor %}").unwrap();
    check_refused(&model, &["-p", "x"], &["`chat_template` in `chat_template.jinja`", "token `<tool>` (id 513)"]);
}

/// The `tokenizers` crate panics on this file: a piece is shorter than its required prefix.
#[test]
fn a_panic_of_the_tokenizers_crate_is_an_error() {
    let json = r#"{"version": "1.0", "model": {"type": "BPE", "continuing_subword_prefix": "++++", "merges": ["a b"],
        "vocab": {"a": 0, "b": 1, "ab": 2}}}"#;
    let here = infer_core::Tokenizer::from_bytes(json.as_bytes());
    assert!(matches!(here, Err(infer_core::Error::Tokenizer { .. })));
    let model = model();
    std::fs::write(model.path().join("tokenizer.json"), json).unwrap();
    check_refused(&model, &["-p", "x"], &["error: the tokenizer failed: ", "`tokenizer.json`"]);
}

#[test]
fn settings_show_their_origin() {
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

/// `auto` selects the first real GPU, else the CPU.
#[test]
fn auto_selects_no_software_device() {
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

/// Flags select integer products and a rounded cache, which change the logprobs. A quantized model uses integer products by default.
#[test]
fn flags_select_products_and_cache_of_the_cpu() {
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
