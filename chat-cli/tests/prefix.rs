//! BOS in `perplexity` and `logits`, with a model that needs it (testdata/sink), compared with its forward pass in f64.

use std::{
    fs,
    path::{Path, PathBuf},
};

use assert_cmd::Command;
use safetensors::SafeTensors;
use serde_json::{Value, json};
use tempfile::TempDir;

fn testdata(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata").join(path)
}

fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

/// Standard output of a run that succeeds.
fn chat_cli(home: &Path, arguments: &[&str]) -> String {
    let mut command = Command::cargo_bin("chat-cli").unwrap();
    command.current_dir(home).env("HOME", home).env("HF_HUB_OFFLINE", "1").args(arguments);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn expected() -> Value {
    serde_json::from_slice(&fs::read(testdata("sink/expected.json")).unwrap()).unwrap()
}

#[test]
fn perplexity_is_measured_with_and_without_bos() {
    let (home, expected, model) = (tempfile::tempdir().unwrap(), expected(), testdata("sink"));
    let (model, text) = (model.to_str().unwrap(), model.join("text.txt"));
    let arguments = ["perplexity", model, "--text", text.to_str().unwrap(), "--plain", "--window", "64"];
    let has_gpu = chat_cli(home.path(), &["devices", "--json"]).trim() != "[]";
    for device in ["cpu", "gpu"].into_iter().take(1 + usize::from(has_gpu)) {
        let run = |more: &[&str]| {
            let more = [&["--device", device, "--cache", "f32"], more].concat();
            chat_cli(home.path(), &[&arguments[..], &more].concat())
        };
        for (flags, name, prefix) in [
            (&[][..], "bos", json!(["<|begin_of_text|>"])),
            (&["--prefix-token", "auto"], "bos", json!(["<|begin_of_text|>"])),
            (&["--prefix-token", "none"], "none", json!([])),
        ] {
            let report: Value = serde_json::from_str(&run(&[flags, &["--json"]].concat())).unwrap();
            assert_eq!((&report["prefix_tokens"], &report["window"]), (&prefix, &json!(64)));
            let (found, expected) = (&report["window_losses"], &expected[name]["window_losses"]);
            assert_eq!(found.as_array().unwrap().len(), expected.as_array().unwrap().len());
            for (found, expected) in found.as_array().unwrap().iter().zip(expected.as_array().unwrap()) {
                let (found, expected) = (found.as_f64().unwrap(), expected.as_f64().unwrap());
                assert!((found - expected).abs() < 1e-3, "{name} on {device}: {found}, expected {expected}");
            }
        }
        let line = run(&[]);
        assert!(line.contains("windows of 64 tokens, each beginning with `<|begin_of_text|>`,"), "{line}");
        let line = run(&["--prefix-token", "none"]);
        assert!(line.contains("windows of 64 tokens, without a prefix token,"), "{line}");
    }
    let of = |name: &str| expected[name]["perplexity"].as_f64().unwrap();
    assert!(of("none") > 10.0 * of("bos"), "the model needs BOS");
}

/// The tensors in the output of `logits`.
fn tensors(home: &Path, arguments: &[&str]) -> (Vec<u32>, Vec<f32>) {
    let fixed = ["logits", "-o", "out", "--device", "cpu"];
    chat_cli(home, &[&fixed[..], arguments].concat());
    let bytes = fs::read(home.join("out")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let words = |name| file.tensor(name).unwrap().data().chunks_exact(4).map(|b| [b[0], b[1], b[2], b[3]]);
    (words("ids").map(u32::from_le_bytes).collect(), words("logits").map(f32::from_le_bytes).collect())
}

#[test]
fn logits_of_a_text_begin_with_bos() {
    let (home, model) = (tempfile::tempdir().unwrap(), testdata("sink"));
    let model = model.to_str().unwrap();
    fs::write(home.path().join("text"), "w5 w6 w7").unwrap();
    let ids = |ids: &[u32]| {
        fs::write(home.path().join("ids"), json!(ids).to_string()).unwrap();
        tensors(home.path(), &[model, "--ids", "ids"])
    };
    let (with_bos, without) = (ids(&[1, 8, 9, 10]), ids(&[8, 9, 10]));
    assert_eq!((&with_bos.0[..], with_bos.1.len()), (&[1, 8, 9, 10][..], 4 * 64));
    assert_eq!(tensors(home.path(), &[model, "--text", "text"]), with_bos);
    assert_eq!(tensors(home.path(), &[model, "--text", "text", "--prefix-token", "none"]), without);
    fs::write(home.path().join("text"), "<|begin_of_text|>w5 w6 w7").unwrap();
    assert_eq!(tensors(home.path(), &[model, "--text", "text"]), with_bos);
}

/// The prefix tokens in the report of `perplexity`.
fn prefix_tokens(home: &Path, model: &str) -> Value {
    let report = chat_cli(home, &["perplexity", model, "--device", "cpu", "--window", "16", "--json"]);
    serde_json::from_str::<Value>(&report).unwrap()["prefix_tokens"].take()
}

/// An MLC folder that names BOS only in tokenizer_config.json.
fn mlc_folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    copy(&testdata("arch/llama/q4f16_1"), folder.path());
    fs::copy(testdata("tokenizer/tiny-bpe/tokenizer.json"), folder.path().join("tokenizer.json")).unwrap();
    folder
}

#[test]
fn an_mlc_folder_keeps_the_rule_of_its_tokenizer() {
    let folder = mlc_folder();
    assert_eq!(prefix_tokens(folder.path(), "."), json!([]));
    for (add_bos_token, expected) in [(true, json!(["<|bos|>"])), (false, json!([]))] {
        let config = json!({
            "tokenizer_class": "LlamaTokenizer", "bos_token": "<|bos|>", "add_bos_token": add_bos_token,
        });
        fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
        assert_eq!(prefix_tokens(folder.path(), "."), expected);
    }
}

#[test]
fn metadata_of_a_gguf_file_decides() {
    let home = tempfile::tempdir().unwrap();
    let mut bytes = fs::read(testdata("gguf/tiny.gguf")).unwrap();
    let key = b"tokenizer.ggml.add_bos_token";
    let at = bytes.windows(key.len()).position(|window| window == key).unwrap() + key.len();
    // A boolean in GGUF: the type 7 in 32 bits, then one byte.
    assert_eq!(bytes[at..at + 5], [7, 0, 0, 0, 0]);
    for (value, expected) in [(0, json!([])), (1, json!(["<|bos|>"]))] {
        bytes[at + 4] = value;
        fs::write(home.path().join("model.gguf"), &bytes).unwrap();
        assert_eq!(prefix_tokens(home.path(), "model.gguf"), expected);
    }
}
