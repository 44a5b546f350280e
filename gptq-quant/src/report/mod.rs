//! [`Report`]: what a run was asked for, what became of each matrix, and what it cost; as JSON, and as a page for people.
//!
//! The program writes both into the folder of the checkpoint.

pub mod matrix;
mod page;

use std::{collections::BTreeMap, path::Path};

use model_format::staging::Staging;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Error, Evaluation, MatrixReport, Result, output::LAYOUT};

/// The report's files.
pub const REPORT_FILES: [&str; 2] = ["quantize_report.json", "quantize_report.html"];

/// What a run was asked for, and what came of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The program and its version.
    pub program: String,
    /// The model's name, as it was given.
    pub model: String,
    /// What computed it.
    pub device: String,
    /// The options: [`Settings`](crate::Settings) as JSON.
    pub settings: Value,
    /// Each source of calibration text with its windows.
    pub sources: Vec<(String, usize)>,
    /// Tokens per window.
    pub seq_len: usize,
    /// What each window begins with, of the calibration text and of the evaluation: tokens as the tokenizer writes them.
    #[serde(default)]
    pub prefix_tokens: Vec<String>,
    /// Every quantized matrix.
    pub matrices: Vec<MatrixReport>,
    /// Seconds by what they went into; of the last run, if it went on with another's work.
    pub seconds: BTreeMap<String, f64>,
    /// The most memory that the process had at a time, in bytes; where the system tells.
    pub peak_memory: Option<u64>,
    /// What quantizing cost, if that was asked.
    pub evaluation: Option<Evaluation>,
}

impl Report {
    /// The report in `folder`; `None` where there is none.
    pub fn read(folder: &Path) -> Result<Option<Report>> {
        let path = folder.join(REPORT_FILES[0]);
        let content = match std::fs::read(&path) {
            Ok(content) => content,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(model_format::Error::Io { action: "read", path, source }.into()),
        };
        let report = serde_json::from_slice(&content).map_err(|error| {
            let file = path.display().to_string();
            Error::Format(model_format::Error::Malformed { file, reason: error.to_string() })
        });
        report.map(Some)
    }

    /// Its files, by name.
    pub fn files(&self) -> [(&'static str, Vec<u8>); 2] {
        let mut json = serde_json::to_vec_pretty(self).expect("a report serializes");
        json.push(b'\n');
        let [json_name, page_name] = REPORT_FILES;
        [(json_name, json), (page_name, page::page(self).into_bytes())]
    }

    /// Replaces the report in `folder`.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let mut staging = Staging::new(folder, LAYOUT)?;
        for (name, content) in self.files() {
            staging.write(name, &content)?;
        }
        Ok(staging.commit(|_| false, |_| false)?)
    }

    /// In words, what each window begins with.
    pub fn beginning(&self) -> String {
        calib_data::perplexity::describe_prefix(&self.prefix_tokens)
    }

    /// Bits per weight that the quantized matrices of the layers take.
    pub fn bits_per_weight(&self) -> f64 {
        let weights = |matrix: &&MatrixReport| (matrix.shape[0] * matrix.shape[1]) as f64;
        let of_layers = || self.matrices.iter().filter(|matrix| matrix.layer.is_some());
        let bits: f64 = of_layers().map(|matrix| matrix.bits_per_weight() * weights(&matrix)).sum();
        bits / of_layers().map(|matrix| weights(&matrix)).sum::<f64>()
    }
}
