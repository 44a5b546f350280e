//! [`Generation`]: one answer, pulled piece by piece.
//!
//! The prompt is prefilled at the first pull, then each pull decodes until there is text to show. Nothing runs between
//! pulls, and dropping the generation ends it.

use std::collections::VecDeque;

use web_time::Instant;

use crate::{
    Engine, Error, Result, SamplingParams,
    logprobs::TokenLogprobs,
    model::session::PREFILL_CHUNK,
    prompt_lookup::Lookup,
    sampler::Sampler,
    stop::StopStrings,
    tokenizer::StreamDecoder,
    vocabulary::{check_biases, check_tokens},
};

/// First tokens that are kept when the context shifts: much attention rests on them, whatever they are.
const SINK: usize = 4;

/// A piece of an answer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Chunk {
    /// Whole characters.
    pub text: String,
    /// The tokens since the piece before; the last may belong to text that is still held back.
    pub tokens: Vec<u32>,
    /// How likely each of these tokens was, where that was asked for.
    pub logprobs: Vec<TokenLogprobs>,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// At a stop token or a stop string.
    Stop,
    /// At `max_tokens`.
    Length,
    /// The context has no room for another token.
    ContextFull,
}

impl FinishReason {
    /// The word that other engines use: `stop` or `length`.
    pub fn as_str(self) -> &'static str {
        match self {
            FinishReason::Stop => "stop",
            FinishReason::Length | FinishReason::ContextFull => "length",
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
    /// Tokens that were guessed.
    pub guessed_tokens: usize,
    /// Of these, tokens that were right.
    pub right_tokens: usize,
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
    state: State,
}

/// An answer whose device failed: what [`Engine::resume`] goes on with.
pub struct Suspended(State);

struct State {
    sampler: Sampler,
    params: SamplingParams,
    /// Tokens to run before the next can be sampled.
    next: Vec<u32>,
    /// Tokens of the prompt that are still remembered, with those of the answer behind them.
    text: Vec<u32>,
    generated: Vec<u32>,
    lookup: Lookup,
    /// Guessed tokens that were right, and the one after them; the cache holds all but that one.
    known: VecDeque<u32>,
    stream: StreamDecoder,
    stops: StopStrings,
    finished: Option<FinishReason>,
    stats: Stats,
}

impl<'a> Generation<'a> {
    pub(crate) fn new(engine: &'a mut Engine, prompt: Vec<u32>, params: SamplingParams) -> Result<Generation<'a>> {
        let sampler = Sampler::new(&params, &prompt)?;
        let rows = engine.config().vocab_size;
        check_tokens(&prompt, rows, &engine.tokenizer)?;
        check_biases(&params.logit_bias, rows)?;
        if prompt.is_empty() || prompt.len() >= engine.context() {
            return Err(Error::ContextFull { tokens: prompt.len(), context: engine.context() });
        }
        let stops = StopStrings::new(engine.stop_strings.iter().cloned().chain(params.stop.iter().cloned()));
        let state = State {
            stream: StreamDecoder::new(&engine.tokenizer, true),
            stops,
            sampler,
            params,
            stats: Stats { prompt_tokens: prompt.len(), ..Stats::default() },
            next: Vec::new(),
            text: prompt,
            generated: Vec::new(),
            lookup: Lookup::default(),
            known: VecDeque::new(),
            finished: None,
        };
        let mut generation = Generation { engine, state };
        generation.state.stats.cached_tokens = generation.go_on();
        Ok(generation)
    }

    pub(crate) fn resumed(engine: &'a mut Engine, suspended: Suspended) -> Generation<'a> {
        let mut generation = Generation { engine, state: suspended.0 };
        generation.state.finished = None;
        generation.go_on();
        generation
    }

    /// Sets out to run what the cache does not hold of the text; returns how much it holds.
    fn go_on(&mut self) -> usize {
        let Generation { engine, state } = self;
        state.known.clear();
        // The last token always runs: its logits are what the next is chosen by. As many before it run again as make a part:
        // kernels for fewer rows round differently, and an answer is the same whether its prompt was in the cache or not.
        let fewest = engine.model.fewest_rows();
        let cached = engine.model.common_prefix(&state.text).min(state.text.len().saturating_sub(fewest));
        engine.model.truncate(cached);
        state.next = state.text[cached..].to_vec();
        cached
    }

    /// What is needed to go on with this answer after an error: the same tokens, the same random numbers.
    pub fn suspend(self) -> Suspended {
        Suspended(self.state)
    }

    /// The next piece of text, or `None` when the answer has ended.
    ///
    /// A long prompt is prefilled in parts, and each part but the last answers with an empty piece, so that a caller can
    /// stop in between. After an error the conversation's cache is empty.
    pub async fn next(&mut self) -> Result<Option<Chunk>> {
        let result = self.pull().await;
        if result.is_err() {
            self.state.finished = Some(FinishReason::Stop);
            self.engine.reset();
        }
        result
    }

    async fn pull(&mut self) -> Result<Option<Chunk>> {
        let mut chunk = Chunk::default();
        while self.state.finished.is_none() {
            let part = self.engine.model.part_len(self.state.next.len(), PREFILL_CHUNK);
            if part < self.state.next.len() {
                self.prefill_part(part).await?;
                return Ok(Some(chunk));
            }
            let token = self.sample(&mut chunk.logprobs).await?;
            let state = &mut self.state;
            state.generated.push(token);
            state.text.push(token);
            chunk.tokens.push(token);
            if self.engine.stop_tokens.contains(&token) {
                state.finished = Some(FinishReason::Stop);
            } else {
                let passed = state.stops.push(&state.stream.push(token)?);
                chunk.text = passed.text;
                if passed.stopped {
                    state.finished = Some(FinishReason::Stop);
                } else if state.params.max_tokens.is_some_and(|most| state.generated.len() >= most) {
                    state.finished = Some(FinishReason::Length);
                } else if state.known.is_empty() && self.engine.model.room() == 0 {
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

    /// Forgets all but the first few tokens and the last half, which are run again in their new places.
    fn shift(&mut self) {
        let text = &self.state.text;
        let kept = SINK.min(text.len() / 4);
        let rest = text[text.len() - text.len() / 2..].to_vec();
        self.state.text.truncate(kept);
        self.state.text.extend(rest);
        self.go_on();
    }

    /// Runs the first part of a long prompt.
    async fn prefill_part(&mut self, len: usize) -> Result<()> {
        let start = Instant::now();
        let part = self.state.next[..len].to_vec();
        self.engine.model.most_likely(&part).await?;
        self.state.next.drain(..len);
        self.state.stats.prefill_seconds += start.elapsed().as_secs_f64();
        Ok(())
    }

    /// Guesses what follows, where that is asked for and there is reason to, and keeps what is right.
    async fn check_guess(&mut self) -> Result<()> {
        let Generation { engine, state } = self;
        let (&[token], true) = (&state.next[..], state.params.is_plain_greedy() && engine.model.may_guess()) else {
            return Ok(());
        };
        // What is guessed has to fit, and be wanted.
        let left = state.params.max_tokens.map_or(usize::MAX, |most| most - state.generated.len() - 1);
        let most = state.params.prompt_lookup.min(left).min(engine.model.room().saturating_sub(1));
        if most == 0 {
            return Ok(());
        }
        let guess = state.lookup.guess(&state.text, most);
        if guess.is_empty() {
            return Ok(());
        }
        let chosen = engine.model.check_guess(token, guess).await?;
        let right = chosen.len() - 1;
        state.stats.guessed_tokens += guess.len();
        state.stats.right_tokens += right;
        state.lookup.learn(right);
        state.known.extend(chosen);
        Ok(())
    }

    /// Runs what is to be run and chooses the next token.
    async fn sample(&mut self, logprobs: &mut Vec<TokenLogprobs>) -> Result<u32> {
        let start = Instant::now();
        if self.state.known.is_empty() {
            self.check_guess().await?;
        }
        let Generation { engine, state } = self;
        let token = if let Some(token) = state.known.pop_front() {
            token
        } else if state.params.is_plain_greedy() {
            engine.model.most_likely(&state.next).await?
        } else if state.params.logprobs.is_none()
            && let Some(token) = engine.model.drawn(&state.next, &mut state.sampler, &state.generated).await?
        {
            token
        } else {
            let mut logits = engine.model.logits(&state.next).await?;
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

    /// Text that waited for more to come, now that no more comes.
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

    /// Why the answer ended; `None` while it has not.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.state.finished
    }

    /// The tokens so far.
    pub fn tokens(&self) -> &[u32] {
        &self.state.generated
    }

    /// What it took so far.
    pub fn stats(&self) -> Stats {
        self.state.stats
    }
}
