//! Answers: [`Engine`] turns a conversation into tokens, [`Generation`] pulls the answer piece by piece.

mod engine;
mod generation;
mod stats;

pub use engine::Engine;
pub use generation::{Chunk, FinishReason, Generation, Suspended};
pub use stats::Stats;
