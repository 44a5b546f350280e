//! [`Chunk`]: a piece of an answer, and [`FinishReason`]: why an answer ended.

use crate::sampling::TokenLogprobs;

/// A piece of an answer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Chunk {
    /// Complete characters.
    pub text: String,
    /// The tokens since the last piece. Text of the last ones may still be held back.
    pub tokens: Vec<u32>,
    /// Log-probabilities of these tokens, if [`SamplingParams::logprobs`](crate::SamplingParams::logprobs) is set.
    pub logprobs: Vec<TokenLogprobs>,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// At a stop token or a stop string.
    Stop,
    /// At [`SamplingParams::max_tokens`](crate::SamplingParams::max_tokens).
    Length,
    /// The context is full.
    ContextFull,
}

impl FinishReason {
    /// The word of OpenAI's interface: `stop` or `length`.
    pub fn as_str(self) -> &'static str {
        match self {
            FinishReason::Stop => "stop",
            FinishReason::Length | FinishReason::ContextFull => "length",
        }
    }
}
