//! GPTQ checkpoints in the layout of AutoGPTQ, GPTQModel and vLLM.
//!
//! A quantized matrix is `w[n, k] = (code[n, k] - zero[n, g]) * scale[n, g]` with `g = g_idx[k]`. Its module has four
//! tensors (shapes for 4 bits; the lowest bits of a word are the first code):
//!
//! - `qweight` `[K / 8, N]`: packed codes,
//! - `qzeros` `[groups, N / 8]`: packed zeros,
//! - `scales` `[groups, N]`, f16,
//! - `g_idx` `[K]`: the group of each input.
//!
//! Version 1 (`gptq`) stores each zero minus one. Version 2 (`gptq_v2`) stores it unchanged.

mod config;
mod matrix;
mod rules;
mod to_format;
mod words;

pub use config::GptqConfig;
pub use matrix::GptqMatrix;
pub use rules::{Change, Rule, Rules};
pub use to_format::Refit;
