//! Paths of the test data, and small checkpoints to change.

#![allow(dead_code, reason = "each test file uses its part of this one")]

use std::{
    fs,
    path::{Path, PathBuf},
};

use model_format::{QuantFormat, SafetensorsCheckpoint, TensorCache};

pub fn testdata(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata").join(path)
}

pub fn open(path: &str) -> SafetensorsCheckpoint {
    SafetensorsCheckpoint::open(&testdata(path)).unwrap()
}

pub fn format(name: &str) -> &'static QuantFormat {
    QuantFormat::by_name(name).unwrap()
}

pub fn read(path: impl AsRef<Path>) -> Vec<u8> {
    fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.as_ref().display()))
}

/// A copy of the tiny Llama with its tokenizer, for changes.
pub fn tiny_llama() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (from, names) in [
        ("arch/llama/hf", ["config.json", "generation_config.json", "model.safetensors"].as_slice()),
        ("mlc/arch-llama/tokenizer", ["tokenizer.json", "tokenizer_config.json"].as_slice()),
    ] {
        for name in names {
            fs::copy(testdata(from).join(name), folder.path().join(name)).unwrap();
        }
    }
    folder
}

/// Changes the bytes of one tensor in an MLC folder's shard, and removes the checksums from the index.
pub fn spoil(folder: &Path, tensor: &str, change: impl FnOnce(&mut [u8])) {
    let path = folder.join("tensor-cache.json");
    let index = fs::read_to_string(&path).unwrap();
    let cache = TensorCache::parse("tensor-cache.json", &index).unwrap();
    let (shard, record) = cache.find(tensor).unwrap_or_else(|| panic!("no tensor {tensor}"));
    let data = folder.join(&shard.data_path);
    let mut bytes = read(&data);
    change(&mut bytes[record.byte_offset..][..record.nbytes]);
    fs::write(&data, bytes).unwrap();
    let without_sums = index.lines().filter(|line| !line.contains("md5sum")).collect::<Vec<_>>().join("\n");
    // JSON allows no comma after the last field, so remove the one before the sum.
    fs::write(&path, without_sums.replace("            ],\n        }", "            ]\n        }")).unwrap();
}

/// The files of a folder, sorted by name.
pub fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
