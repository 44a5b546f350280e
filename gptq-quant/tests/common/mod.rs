//! The tiny model, windows and texts for it, and the machine's GPU.

#![allow(dead_code, reason = "each test file uses its part of this one")]

use std::path::{Path, PathBuf};

use calib_data::TokenWindows;
use infer_core::{Gpu, OpenOptions, block_on};
use model_format::SafetensorsCheckpoint;

pub fn testdata(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata").join(path)
}

/// The tiny model of an architecture.
pub fn tiny(arch: &str) -> SafetensorsCheckpoint {
    SafetensorsCheckpoint::open(&testdata(&format!("arch/{arch}/hf"))).unwrap()
}

/// The tiny model with a tokenizer of its size, in `folder/model`.
pub fn tiny_folder(folder: &Path) -> PathBuf {
    let model = folder.join("model");
    std::fs::create_dir(&model).unwrap();
    for file in ["config.json", "generation_config.json", "model.safetensors"] {
        std::fs::copy(testdata("arch/llama/hf").join(file), model.join(file)).unwrap();
    }
    std::fs::copy(testdata("tokenizer/tiny-bpe/tokenizer.json"), model.join("tokenizer.json")).unwrap();
    model
}

/// Windows of pseudorandom tokens of a vocabulary of 512.
pub fn windows(count: usize, seq_len: usize, seed: u32) -> TokenWindows {
    let mut state = seed;
    let mut token = || {
        state = state.wrapping_mul(1664525).wrapping_add(1013904223);
        state >> 23
    };
    let windows: Vec<Vec<u32>> = (0..count).map(|_| (0..seq_len).map(|_| token()).collect()).collect();
    TokenWindows::from_windows(&windows)
}

/// Pseudorandom lines of text, so that its windows differ.
pub fn prose(seed: usize, lines: usize) -> String {
    let words = ["river", "lamp", "stone", "early", "seven", "paper", "window", "slowly", "green", "under", "keeps"];
    let mut state = seed;
    let mut word = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        words[(state >> 33) % words.len()]
    };
    (0..lines).map(|_| format!("The {} {} the {} {}.\n", word(), word(), word(), word())).collect()
}

/// The machine's first GPU. Without one, prints the reason for skipping the test.
pub fn device() -> Option<Gpu> {
    match block_on(Gpu::open(&Default::default(), OpenOptions::default())) {
        Ok(gpu) => Some(gpu),
        Err(error) => {
            assert!(std::env::var_os("REQUIRE_GPU").is_none(), "no GPU: {error}");
            eprintln!("skipped: {error}");
            None
        }
    }
}
