//! [`Stats`]: token counts and times of an answer.

/// Token counts and times of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Stats {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens of the prompt that were already in the cache.
    pub cached_tokens: usize,
    /// Tokens of the answer, the stop token included.
    pub generated_tokens: usize,
    /// Tokens guessed by prompt lookup.
    pub guessed_tokens: usize,
    /// Guessed tokens that were right.
    pub right_tokens: usize,
    /// Seconds of device work until the first token.
    pub time_to_first_token: f64,
    /// Seconds in the prefill of the tokens that were not cached.
    pub prefill_seconds: f64,
    /// Seconds in decoding the tokens after the first.
    pub decode_seconds: f64,
}

impl Stats {
    /// Prefilled tokens per second.
    pub fn prefill_tokens_per_second(&self) -> f64 {
        rate(self.prompt_tokens - self.cached_tokens, self.prefill_seconds)
    }

    /// Decoded tokens per second.
    pub fn decode_tokens_per_second(&self) -> f64 {
        rate(self.generated_tokens.saturating_sub(1), self.decode_seconds)
    }
}

fn rate(tokens: usize, seconds: f64) -> f64 {
    if seconds > 0.0 { tokens as f64 / seconds } else { 0.0 }
}
