//! [`Generation`]: one answer, pulled piece by piece.
//!
//! The first pulls prefill the prompt in chunks. Each later pull decodes tokens until it has text. Nothing runs between
//! pulls, and dropping the generation ends the answer.

use std::collections::VecDeque;

use web_time::Instant;

use super::stats::Stats;
use crate::{
    Error, Result,
    loading::LoadedModel,
    model::chunks::PREFILL_CHUNK,
    sampling::{
        TokenLogprobs,
        prompt_lookup::Lookup,
        sampler::{Sampler, SamplingParams},
    },
    text::{ModelText, check_biases, check_tokens, stop::StopStrings, tokenizer::StreamDecoder},
};

/// Number of leading tokens kept when the context shifts. They are attention sinks: much attention rests on the first
/// tokens of any text.
const SINK: usize = 4;

/// A piece of an answer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Chunk {
    /// Complete characters.
    pub text: String,
    /// The tokens since the last piece. Text of the last ones may still be held back.
    pub tokens: Vec<u32>,
    /// Log-probabilities of these tokens, if [`SamplingParams::logprobs`] is set.
    pub logprobs: Vec<TokenLogprobs>,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// At a stop token or a stop string.
    Stop,
    /// At [`SamplingParams::max_tokens`].
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

/// One answer, pulled piece by piece.
pub struct Generation<'a> {
    model: &'a mut LoadedModel,
    text: &'a ModelText,
    state: State,
}

/// An answer whose device failed. Pass it to [`Engine::resume`](crate::Engine::resume).
pub struct Suspended(State);

struct State {
    sampler: Sampler,
    params: SamplingParams,
    /// Tokens to run before the next token can be sampled.
    next: Vec<u32>,
    /// Prompt and answer. After a context shift, only the kept part of them.
    history: Vec<u32>,
    generated: Vec<u32>,
    lookup: Lookup,
    /// Guessed tokens that were right, then the token after them. The cache has all of them but the last.
    known: VecDeque<u32>,
    stream: StreamDecoder,
    stops: StopStrings,
    finished: Option<FinishReason>,
    stats: Stats,
}

impl<'a> Generation<'a> {
    pub(crate) fn new(
        model: &'a mut LoadedModel,
        text: &'a ModelText,
        prompt: Vec<u32>,
        params: SamplingParams,
    ) -> Result<Generation<'a>> {
        let sampler = Sampler::new(&params, &prompt)?;
        let rows = model.config().vocab_size;
        check_tokens(&prompt, rows, &text.tokenizer)?;
        check_biases(&params.logit_bias, rows)?;
        if prompt.is_empty() || prompt.len() >= model.context() {
            return Err(Error::ContextFull { tokens: prompt.len(), context: model.context() });
        }
        let stops = StopStrings::new(text.stop_strings.iter().cloned().chain(params.stop.iter().cloned()));
        let state = State {
            stream: StreamDecoder::new(&text.tokenizer, true),
            stops,
            sampler,
            params,
            stats: Stats { prompt_tokens: prompt.len(), ..Stats::default() },
            next: Vec::new(),
            history: prompt,
            generated: Vec::new(),
            lookup: Lookup::default(),
            known: VecDeque::new(),
            finished: None,
        };
        let mut generation = Generation { model, text, state };
        generation.state.stats.cached_tokens = generation.reuse_cache();
        Ok(generation)
    }

    pub(crate) fn resumed(model: &'a mut LoadedModel, text: &'a ModelText, suspended: Suspended) -> Generation<'a> {
        let mut generation = Generation { model, text, state: suspended.0 };
        generation.state.finished = None;
        generation.reuse_cache();
        generation
    }

    /// Keeps the common prefix of cache and history, and schedules the rest. Returns the length of the prefix.
    fn reuse_cache(&mut self) -> usize {
        let Generation { model, state, .. } = self;
        state.known.clear();
        // The last token always runs, because its logits choose the next one. It runs in a chunk of at least `fewest_rows`:
        // kernels for fewer rows round differently, and a cached prompt must give the same answer as a new one.
        let fewest = model.fewest_rows();
        let cached = model.common_prefix(&state.history).min(state.history.len().saturating_sub(fewest));
        model.truncate(cached);
        state.next = state.history[cached..].to_vec();
        cached
    }

    /// Suspends the answer after an error. Resuming gives the same tokens, with the same random numbers.
    pub fn suspend(self) -> Suspended {
        Suspended(self.state)
    }

    /// The next piece of text, or `None` if the answer has ended.
    ///
    /// A long prompt is prefilled in chunks. Each chunk but the last returns an empty piece, so that a caller can stop in
    /// between. After an error, the KV cache is empty.
    pub async fn next(&mut self) -> Result<Option<Chunk>> {
        let result = self.pull().await;
        if result.is_err() {
            self.state.finished = Some(FinishReason::Stop);
            self.model.truncate(0);
        }
        result
    }

    async fn pull(&mut self) -> Result<Option<Chunk>> {
        let mut chunk = Chunk::default();
        while self.state.finished.is_none() {
            let len = self.model.chunk_len(self.state.next.len(), PREFILL_CHUNK);
            if len < self.state.next.len() {
                self.prefill_chunk(len).await?;
                return Ok(Some(chunk));
            }
            let token = self.sample(&mut chunk.logprobs).await?;
            let state = &mut self.state;
            state.generated.push(token);
            state.history.push(token);
            chunk.tokens.push(token);
            if self.text.stop_tokens.contains(&token) {
                state.finished = Some(FinishReason::Stop);
            } else {
                let passed = state.stops.push(&state.stream.push(token)?);
                chunk.text = passed.text;
                if passed.stopped {
                    state.finished = Some(FinishReason::Stop);
                } else if state.params.max_tokens.is_some_and(|most| state.generated.len() >= most) {
                    state.finished = Some(FinishReason::Length);
                } else if state.known.is_empty() && self.model.room() == 0 {
                    match state.params.shift {
                        true => self.shift(),
                        false => state.finished = Some(FinishReason::ContextFull),
                    }
                }
            }
            if self.state.finished.is_some() {
                chunk.text.push_str(&self.held_back()?);
            }
            if !chunk.text.is_empty() || self.state.finished.is_some() {
                return Ok(Some(chunk));
            }
        }
        Ok(None)
    }

    /// Drops all but the first few tokens and the last half. The kept tokens run again at their new positions.
    fn shift(&mut self) {
        let history = &self.state.history;
        let sink = SINK.min(history.len() / 4);
        let rest = history[history.len() - history.len() / 2..].to_vec();
        self.state.history.truncate(sink);
        self.state.history.extend(rest);
        self.reuse_cache();
    }

    /// Runs the first `len` tokens of a long prompt.
    async fn prefill_chunk(&mut self, len: usize) -> Result<()> {
        let start = Instant::now();
        let tokens = self.state.next[..len].to_vec();
        self.model.most_likely(&tokens).await?;
        self.state.next.drain(..len);
        self.state.stats.prefill_seconds += start.elapsed().as_secs_f64();
        Ok(())
    }

    /// Prompt lookup: guesses the continuation, checks the guess in one pass, and keeps the right tokens. Does nothing unless
    /// [`SamplingParams::prompt_lookup`] is set and the sampling is plain greedy.
    async fn check_guess(&mut self) -> Result<()> {
        let Generation { model, state, .. } = self;
        let (&[token], true) = (&state.next[..], state.params.is_plain_greedy() && model.may_guess()) else {
            return Ok(());
        };
        // A guess exceeds neither `max_tokens` nor the context.
        let left = state.params.max_tokens.map_or(usize::MAX, |most| most - state.generated.len() - 1);
        let most = state.params.prompt_lookup.min(left).min(model.room().saturating_sub(1));
        if most == 0 {
            return Ok(());
        }
        let guess = state.lookup.guess(&state.history, most);
        if guess.is_empty() {
            return Ok(());
        }
        let chosen = model.check_guess(token, guess).await?;
        let right = chosen.len() - 1;
        state.stats.guessed_tokens += guess.len();
        state.stats.right_tokens += right;
        state.lookup.learn(right);
        state.known.extend(chosen);
        Ok(())
    }

    /// Runs the scheduled tokens and chooses the next one.
    async fn sample(&mut self, logprobs: &mut Vec<TokenLogprobs>) -> Result<u32> {
        let start = Instant::now();
        if self.state.known.is_empty() {
            self.check_guess().await?;
        }
        let Generation { model, state, .. } = self;
        let token = if let Some(token) = state.known.pop_front() {
            token
        } else if state.params.is_plain_greedy() {
            model.most_likely(&state.next).await?
        } else if state.params.logprobs.is_none()
            && let Some(token) = model.drawn(&state.next, &mut state.sampler, &state.generated).await?
        {
            token
        } else {
            let mut logits = model.logits(&state.next).await?;
            let plain = state.params.logprobs.map(|_| logits.clone());
            let token = state.sampler.sample(&mut logits, &state.generated);
            if let Some((plain, top)) = plain.zip(state.params.logprobs) {
                logprobs.push(TokenLogprobs::new(&plain, token, top));
            }
            token
        };
        let seconds = start.elapsed().as_secs_f64();
        if state.generated.is_empty() {
            state.stats.prefill_seconds += seconds;
            state.stats.time_to_first_token = state.stats.prefill_seconds;
        } else {
            state.stats.decode_seconds += seconds;
        }
        state.stats.generated_tokens += 1;
        state.next = vec![token];
        Ok(token)
    }

    /// The text that was held back, at the end of the answer.
    fn held_back(&mut self) -> Result<String> {
        let state = &mut self.state;
        let rest = state.stream.finish()?;
        let passed = state.stops.push(&rest);
        if passed.stopped {
            state.finished = Some(FinishReason::Stop);
            return Ok(passed.text);
        }
        Ok(passed.text + &state.stops.finish())
    }

    /// Why the answer ended. `None` while it has not.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.state.finished
    }

    /// The tokens of the answer so far.
    pub fn tokens(&self) -> &[u32] {
        &self.state.generated
    }

    /// Token counts and times so far.
    pub fn stats(&self) -> Stats {
        self.state.stats
    }
}
