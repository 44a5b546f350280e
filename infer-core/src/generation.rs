//! [`Generation`]: one answer, pulled piece by piece.
//!
//! The prompt is prefilled at the first pull, then each pull decodes until there is text to show. Nothing runs between
//! pulls, and dropping the generation ends it.

use web_time::Instant;

use crate::{
    Engine, Error, Result, SamplingParams, model::session::PREFILL_CHUNK, sampler::Sampler, stop::StopStrings,
    tokenizer::StreamDecoder,
};

/// A piece of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// Whole characters.
    pub text: String,
    /// The tokens since the piece before; the last may belong to text that is still held back.
    pub tokens: Vec<u32>,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// At a stop token or a stop string.
    Stop,
    /// At `max_tokens`, or because the context is full.
    Length,
}

impl FinishReason {
    /// The word that other engines use: `stop` or `length`.
    pub fn as_str(self) -> &'static str {
        match self {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
        }
    }
}

/// What an answer took.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Stats {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Of these, tokens that the cache held already.
    pub cached_tokens: usize,
    /// Tokens of the answer, the stop token included.
    pub generated_tokens: usize,
    /// Seconds that the device took until the first token was there.
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

/// One answer, pulled piece by piece.
pub struct Generation<'a> {
    engine: &'a mut Engine,
    sampler: Sampler,
    greedy: bool,
    max_tokens: usize,
    /// Tokens to run before the next can be sampled.
    next: Vec<u32>,
    generated: Vec<u32>,
    stream: StreamDecoder,
    stops: StopStrings,
    finished: Option<FinishReason>,
    stats: Stats,
}

impl<'a> Generation<'a> {
    pub(crate) fn new(engine: &'a mut Engine, prompt: Vec<u32>, params: SamplingParams) -> Result<Generation<'a>> {
        let sampler = Sampler::new(&params, &prompt)?;
        if prompt.is_empty() || prompt.len() >= engine.context() {
            return Err(Error::ContextFull { tokens: prompt.len(), context: engine.context() });
        }
        // The last token always runs: its logits are what the answer begins with.
        let cached = engine.model.common_prefix(&prompt).min(prompt.len() - 1);
        engine.model.truncate(cached);
        let stops = StopStrings::new(engine.stop_strings.iter().cloned().chain(params.stop.iter().cloned()));
        Ok(Generation {
            stream: StreamDecoder::new(&engine.tokenizer, true),
            stops,
            sampler,
            greedy: params.is_plain_greedy(),
            max_tokens: params.max_tokens.unwrap_or(usize::MAX),
            stats: Stats { prompt_tokens: prompt.len(), cached_tokens: cached, ..Stats::default() },
            next: prompt[cached..].to_vec(),
            generated: Vec::new(),
            finished: None,
            engine,
        })
    }

    /// The next piece of text, or `None` when the answer has ended.
    ///
    /// A long prompt is prefilled in parts, and each part but the last answers with an empty piece, so that a caller can
    /// stop in between. After an error the conversation's cache is empty.
    pub async fn next(&mut self) -> Result<Option<Chunk>> {
        let result = self.pull().await;
        if result.is_err() {
            self.finished = Some(FinishReason::Stop);
            self.engine.reset();
        }
        result
    }

    async fn pull(&mut self) -> Result<Option<Chunk>> {
        let mut tokens = Vec::new();
        while self.finished.is_none() {
            let part = self.engine.model.part_len(self.next.len(), PREFILL_CHUNK);
            if part < self.next.len() {
                self.prefill_part(part).await?;
                return Ok(Some(Chunk { text: String::new(), tokens }));
            }
            let token = self.sample().await?;
            self.generated.push(token);
            tokens.push(token);
            let mut text = String::new();
            if self.engine.stop_tokens.contains(&token) {
                self.finished = Some(FinishReason::Stop);
            } else {
                let passed = self.stops.push(&self.stream.push(token)?);
                text = passed.text;
                if passed.stopped {
                    self.finished = Some(FinishReason::Stop);
                } else if self.generated.len() >= self.max_tokens || self.engine.model.room() == 0 {
                    self.finished = Some(FinishReason::Length);
                }
            }
            if self.finished.is_some() {
                text.push_str(&self.held_back()?);
            }
            if !text.is_empty() || self.finished.is_some() {
                return Ok(Some(Chunk { text, tokens }));
            }
        }
        Ok(None)
    }

    /// Runs the first part of a long prompt.
    async fn prefill_part(&mut self, len: usize) -> Result<()> {
        let start = Instant::now();
        let rest = self.next.split_off(len);
        let part = std::mem::replace(&mut self.next, rest);
        self.engine.model.most_likely(&part).await?;
        self.stats.prefill_seconds += start.elapsed().as_secs_f64();
        Ok(())
    }

    /// Runs what is to be run and chooses the next token.
    async fn sample(&mut self) -> Result<u32> {
        let start = Instant::now();
        let tokens = std::mem::take(&mut self.next);
        let token = if self.greedy {
            self.engine.model.most_likely(&tokens).await?
        } else {
            let mut logits = self.engine.model.logits(&tokens).await?;
            self.sampler.sample(&mut logits, &self.generated)
        };
        let seconds = start.elapsed().as_secs_f64();
        if self.generated.is_empty() {
            self.stats.prefill_seconds += seconds;
            self.stats.time_to_first_token = self.stats.prefill_seconds;
        } else {
            self.stats.decode_seconds += seconds;
        }
        self.stats.generated_tokens += 1;
        self.next = vec![token];
        Ok(token)
    }

    /// Text that waited for more to come, now that no more comes.
    fn held_back(&mut self) -> Result<String> {
        let rest = self.stream.finish()?;
        let passed = self.stops.push(&rest);
        if passed.stopped {
            self.finished = Some(FinishReason::Stop);
            return Ok(passed.text);
        }
        Ok(passed.text + &self.stops.finish())
    }

    /// Why the answer ended; `None` while it has not.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.finished
    }

    /// The tokens so far.
    pub fn tokens(&self) -> &[u32] {
        &self.generated
    }

    /// What it took so far.
    pub fn stats(&self) -> Stats {
        self.stats
    }
}
