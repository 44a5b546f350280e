//! Answers: [`Engine`] turns a conversation into tokens, [`Generation`] pulls the answer piece by piece.
//!
//! `batch.rs` runs all answers in progress together, in steps that `../schedule` plans.

mod batch;
mod chunk;
mod engine;
mod generation;
mod outbox;
mod shared;
mod state;
mod stats;
mod token_engine;

pub use batch::CacheUse;
pub use chunk::{Chunk, FinishReason};
pub use engine::Engine;
pub use generation::{Generation, Suspended};
pub use stats::Stats;
pub use token_engine::TokenEngine;
