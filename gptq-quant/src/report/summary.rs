//! [`Report`]: settings and results of a run, as `quantize_report.json` stores them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{evaluate::Evaluation, matrix::MatrixReport};

/// Settings and results of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The program and its version.
    pub program: String,
    /// The model's name on the command line.
    pub model: String,
    /// The device that computed.
    pub device: String,
    /// [`Settings`](crate::Settings) as JSON.
    pub settings: Value,
    /// Each source of calibration text with its number of windows.
    pub sources: Vec<(String, usize)>,
    /// Tokens per window.
    pub seq_len: usize,
    /// The prefix tokens of each window, of the calibration text and of the evaluation, as the tokenizer writes them.
    #[serde(default)]
    pub prefix_tokens: Vec<String>,
    /// Every quantized matrix.
    pub matrices: Vec<MatrixReport>,
    /// Seconds by kind of work. Covers only the last run after an interruption.
    pub seconds: BTreeMap<String, f64>,
    /// Peak memory of the process in bytes, if the system reports it.
    pub peak_memory: Option<u64>,
    /// Quality of the quantized model, if it was measured.
    pub evaluation: Option<Evaluation>,
}

impl Report {
    /// Describes the prefix tokens in words.
    pub fn beginning(&self) -> String {
        calib_data::perplexity::describe_prefix(&self.prefix_tokens)
    }

    /// Mean bits per weight of the quantized layer matrices.
    pub fn bits_per_weight(&self) -> f64 {
        let weights = |matrix: &&MatrixReport| (matrix.shape[0] * matrix.shape[1]) as f64;
        let of_layers = || self.matrices.iter().filter(|matrix| matrix.layer.is_some());
        let bits: f64 = of_layers().map(|matrix| matrix.bits_per_weight() * weights(&matrix)).sum();
        bits / of_layers().map(|matrix| weights(&matrix)).sum::<f64>()
    }
}
