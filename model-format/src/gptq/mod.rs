//! GPTQ checkpoints as AutoGPTQ, GPTQModel and vLLM read them: the layout of `qweight`, `qzeros`, `scales`, `g_idx`.
//!
//! `w[n, k] = (code[n, k] - zero[n, g]) * scale[n, g]` with `g = g_idx[k]`. `qweight` is `[K / 8, N]` (4 bits; the low
//! nibble is the lower k), `qzeros` `[groups, N / 8]`, `scales` `[groups, N]` f16, `g_idx` `[K]`. Version 1 (`gptq`)
//! stores zeros minus one, version 2 (`gptq_v2`) stores them as they are.

mod config;
mod matrix;
mod rules;
mod to_format;
mod words;

pub use config::GptqConfig;
pub use matrix::GptqMatrix;
pub use rules::{Change, Rule, Rules};
pub use to_format::Refit;
