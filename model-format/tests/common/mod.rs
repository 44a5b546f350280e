//! An in-memory checkpoint, and paths of the test data.

#![allow(dead_code, reason = "each test file uses a part of this module")]

use std::path::{Path, PathBuf};

use model_format::{Checkpoint, Dtype, Error, HostTensor, Result, TensorInfo};

pub fn testdata(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata").join(path)
}

pub fn read(path: &str) -> String {
    let path = testdata(path);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// A checkpoint in memory.
#[derive(Default)]
pub struct Memory {
    pub config_json: String,
    infos: Vec<TensorInfo>,
    tensors: Vec<HostTensor<'static>>,
}

impl Memory {
    pub fn add(&mut self, name: &str, tensor: HostTensor<'static>) {
        self.infos.retain(|info| info.name != name);
        self.infos.push(TensorInfo {
            name: name.into(),
            dtype: tensor.dtype,
            shape: tensor.shape.clone(),
            file: self.tensors.len().to_string(),
        });
        self.tensors.push(tensor);
    }

    pub fn add_f32(&mut self, name: &str, shape: &[usize], values: &[f32]) {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.add(name, HostTensor { dtype: Dtype::F32, shape: shape.to_vec(), bytes: bytes.into() });
    }
}

impl Checkpoint for Memory {
    fn tensors(&self) -> &[TensorInfo] {
        &self.infos
    }

    fn tensor(&self, name: &str) -> Result<HostTensor<'_>> {
        match self.info(name) {
            Some(info) => Ok(self.tensors[info.file.parse::<usize>().unwrap()].clone()),
            None => Err(Error::MissingParam { name: name.into(), file: self.location(), nearest: None }),
        }
    }

    fn location(&self) -> String {
        "memory".into()
    }

    fn config_json(&self) -> &str {
        &self.config_json
    }

    fn companion_files(&self) -> Result<Vec<(String, Vec<u8>)>> {
        Ok(Vec::new())
    }
}
