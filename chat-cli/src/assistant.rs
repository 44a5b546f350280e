//! [`Assistant`]: answers a conversation. The engine is one; tests use a script.

use std::io;

use infer_core::{FinishReason, Message, SamplingParams, Stats, TokenLogprobs};

use crate::Result;

/// Answers conversations.
pub trait Assistant {
    /// Answers `messages`. Calls `show` with each piece of text as soon as it is decoded.
    fn answer(
        &mut self,
        messages: &[Message],
        params: &SamplingParams,
        show: &mut dyn FnMut(&str) -> io::Result<()>,
    ) -> Result<Answer>;

    /// Clears the cached conversation.
    fn reset(&mut self);
}

/// An answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// The text.
    pub text: String,
    /// Token ids of the prompt.
    pub prompt_tokens: Vec<u32>,
    /// Token ids of the answer.
    pub tokens: Vec<u32>,
    /// The reason for its end; `None` if the user interrupted it.
    pub finish_reason: Option<FinishReason>,
    /// Token counts and times.
    pub stats: Stats,
    /// Log probabilities of each token; empty unless requested.
    pub logprobs: Vec<TokenLogprobs>,
}
