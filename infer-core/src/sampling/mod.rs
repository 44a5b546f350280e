//! The choice of the next token: sampler, log-probabilities, default settings, guesses.

mod chat_defaults;
mod logprobs;
pub mod prompt_lookup;
pub mod sampler;

pub use chat_defaults::{ChatDefaults, Origin};
pub use logprobs::{MOST_LOGPROBS, TokenLogprobs};
