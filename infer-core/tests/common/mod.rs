//! Golden data, the GPU, and measures of error. Tests of `benches` use it too.

#![allow(dead_code, reason = "each test file uses its part of this one")]

use std::path::{Path, PathBuf};

use infer_core::{Gpu, OpenOptions, block_on};
use safetensors::SafeTensors;
use serde_json::Value;

/// A folder of golden data.
pub struct Golden {
    folder: PathBuf,
}

/// A safetensors file of golden values.
pub struct Tensors {
    bytes: Vec<u8>,
}

impl Golden {
    pub fn open(name: &str) -> Golden {
        Golden { folder: Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata").join(name) }
    }

    pub fn folder(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    pub fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&std::fs::read(self.folder.join(name)).unwrap()).unwrap()
    }

    pub fn tensors(&self, name: &str) -> Tensors {
        Tensors { bytes: std::fs::read(self.folder.join(name)).unwrap() }
    }
}

impl Tensors {
    fn words(&self, name: &str) -> Vec<[u8; 4]> {
        let file = SafeTensors::deserialize(&self.bytes).unwrap();
        let tensor = file.tensor(name).unwrap();
        tensor.data().chunks_exact(4).map(|b| [b[0], b[1], b[2], b[3]]).collect()
    }

    pub fn f32(&self, name: &str) -> Vec<f32> {
        self.words(name).into_iter().map(f32::from_le_bytes).collect()
    }

    pub fn ids(&self, name: &str) -> Vec<u32> {
        self.words(name).into_iter().map(u32::from_le_bytes).collect()
    }
}

/// Opens the machine's first adapter. Without one the test is skipped, and the reason printed; with `REQUIRE_GPU` set it fails.
pub fn gpu(options: OpenOptions) -> Option<Gpu> {
    match block_on(Gpu::open(&Default::default(), options)) {
        Ok(gpu) => Some(gpu),
        Err(error) => {
            assert!(std::env::var_os("REQUIRE_GPU").is_none(), "no GPU: {error}");
            eprintln!("skipped: {error}");
            None
        }
    }
}

/// Opens the first adapter once per profile.
pub fn profiles() -> Vec<(&'static str, Gpu)> {
    OpenOptions::PROFILES.into_iter().filter_map(|(name, options)| Some((name, gpu(options)?))).collect()
}

pub fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// Difference of the two largest logits at each step.
pub fn margins(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|margin| margin.as_f64().unwrap() as f32).collect()
}

/// The column of the largest value.
pub fn largest(logits: &[f32]) -> u32 {
    (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap() as u32
}

pub fn max_abs_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// Normalized mean squared error: `sum (found - expected)^2 / sum expected^2`.
pub fn nmse(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let error: f64 = found.iter().zip(expected).map(|(f, e)| f64::from(f - e).powi(2)).sum();
    error / expected.iter().map(|&e| f64::from(e).powi(2)).sum::<f64>()
}
