//! A tiny model with a tokenizer, for tests of whole answers. Its weights are random, so its answers are nonsense.

use std::{fs, path::Path};

use serde_json::Value;
use tempfile::TempDir;

/// An MLC folder with a tokenizer; tests may change it.
pub fn model() -> TempDir {
    let testdata = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata");
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(testdata.join("arch/llama/q4f16_1")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    fs::copy(testdata.join("tokenizer/tiny-bpe/tokenizer.json"), folder.path().join("tokenizer.json")).unwrap();
    // The conversation template belongs to a large vocabulary. This one lacks its prefix token.
    let path = folder.path().join("mlc-chat-config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["conv_template"]["system_prefix_token_ids"] = Value::Null;
    config["conv_template"]["system_message"] = "".into();
    fs::write(&path, config.to_string()).unwrap();
    folder
}
