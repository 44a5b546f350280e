//! The engine in a browser's worker: `infer-core` over WebGPU, behind a few functions for JavaScript.
//!
//! `WebGpu` opens a device. `ChatEngine` loads a model from files that JavaScript reads, and answers conversations. `plan`
//! lists a model's files. `Checksum` computes the checksum of a downloaded file. The caller is `engine/worker.ts`, beside
//! this folder. On targets other than wasm the crate is empty.
//!
//! ```js
//! const gpu = await WebGpu.open(false, true);
//! const engine = await ChatEngine.load(gpu, files, "{}", (done, total) => {});
//! await engine.answer('[{"role":"user","content":"Hi"}]', "{}", (text) => { console.log(text); return true; });
//! ```

#![cfg_attr(not(test), warn(clippy::print_stdout, clippy::print_stderr, clippy::disallowed_methods))]
#![cfg(target_arch = "wasm32")]

mod engine;
mod error;
mod files;
mod gpu;
mod plan;

pub use engine::ChatEngine;
pub use files::JsFiles;
pub use gpu::{Pipelines, WebGpu};
pub use plan::{Checksum, plan};
