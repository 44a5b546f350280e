//! [`Answer`]: the state of one answer between steps: sampler, guesses, text and stop conditions.

use web_time::Instant;

use super::{
    chunk::{Chunk, FinishReason},
    stats::Stats,
};
use crate::{
    Result,
    sampling::{
        TokenLogprobs,
        prompt_lookup::Lookup,
        sampler::{Sampler, SamplingParams},
    },
    text::{ModelText, stop::StopStrings, tokenizer::StreamDecoder},
};

/// Number of leading tokens kept when the context shifts. They are attention sinks: much attention rests on the first
/// tokens of any text.
const SINK: usize = 4;

/// The state of one answer between steps.
pub(super) struct Answer {
    pub sampler: Sampler,
    pub params: SamplingParams,
    pub lookup: Lookup,
    /// Prompt and answer. After a context shift, only the kept part of them.
    pub history: Vec<u32>,
    pub generated: Vec<u32>,
    pub finished: Option<FinishReason>,
    pub stats: Stats,
    /// The text side; `None` for an answer of token ids.
    text: Option<TextSide>,
    /// Ids that end the answer.
    stop_tokens: Vec<u32>,
    /// The time of the last results.
    counted: Option<Instant>,
}

/// Turns tokens into text.
struct TextSide {
    stream: StreamDecoder,
    stops: StopStrings,
}

impl Answer {
    /// An answer to `prompt`, with text if `text` is given. Errors: [`Error::BadParameter`](crate::Error::BadParameter).
    pub fn new(text: Option<&ModelText>, prompt: Vec<u32>, params: SamplingParams) -> Result<Answer> {
        let stop_strings =
            |text: &ModelText| StopStrings::new(text.stop_strings.iter().cloned().chain(params.stop.iter().cloned()));
        Ok(Answer {
            sampler: Sampler::new(&params, &prompt)?,
            stop_tokens: text.map_or_else(Vec::new, |text| text.stop_tokens.clone()),
            text: text
                .map(|text| TextSide { stream: StreamDecoder::new(&text.tokenizer, true), stops: stop_strings(text) }),
            params,
            stats: Stats { prompt_tokens: prompt.len(), ..Stats::default() },
            history: prompt,
            generated: Vec::new(),
            lookup: Lookup::default(),
            finished: None,
            counted: None,
        })
    }

    /// Adds the next token and its text to `chunk`. `room` is the number of tokens that still fit into the context. Returns true
    /// if the context is full and shifts: the history is another one then.
    pub fn push(&mut self, token: u32, room: usize, chunk: &mut Chunk) -> Result<bool> {
        self.generated.push(token);
        self.history.push(token);
        self.stats.generated_tokens += 1;
        chunk.tokens.push(token);
        let mut shifts = false;
        if self.stop_tokens.contains(&token) {
            self.finished = Some(FinishReason::Stop);
        } else {
            let mut stopped = false;
            if let Some(TextSide { stream, stops }) = &mut self.text {
                let passed = stops.push(&stream.push(token)?);
                chunk.text.push_str(&passed.text);
                stopped = passed.stopped;
            }
            if stopped {
                self.finished = Some(FinishReason::Stop);
            } else if self.params.max_tokens.is_some_and(|most| self.generated.len() >= most) {
                self.finished = Some(FinishReason::Length);
            } else if room == 0 {
                match self.params.shift {
                    true => {
                        self.shift();
                        shifts = true;
                    }
                    false => self.finished = Some(FinishReason::ContextFull),
                }
            }
        }
        if self.finished.is_some() {
            chunk.text.push_str(&self.held_back()?);
        }
        Ok(shifts)
    }

    /// True if its chunks have text.
    pub fn has_text(&self) -> bool {
        self.text.is_some()
    }

    /// Chooses a token on the host from `logits` `[vocab_size]`.
    pub fn sample(&mut self, logits: &mut [f32], logprobs: &mut Vec<TokenLogprobs>) -> u32 {
        let plain = self.params.logprobs.map(|_| logits.to_vec());
        let token = self.sampler.sample(logits, &self.generated);
        if let Some((plain, top)) = plain.zip(self.params.logprobs) {
            logprobs.push(TokenLogprobs::new(&plain, token, top));
        }
        token
    }

    /// A guess of the tokens after the history, by prompt lookup. `room`: tokens that fit into the context. Empty if there is none.
    pub fn guess(&mut self, room: usize) -> Vec<u32> {
        if self.generated.is_empty() {
            return Vec::new();
        }
        // A guess exceeds neither `max_tokens` nor the context.
        let left = self.params.max_tokens.map_or(usize::MAX, |most| most - self.generated.len() - 1);
        let most = self.params.prompt_lookup.min(left).min(room.saturating_sub(1));
        if most == 0 {
            return Vec::new();
        }
        self.lookup.guess(&self.history, most).to_vec()
    }

    /// Adds the time since `begun`, the start of the current call, or since the last results if those are later.
    pub fn count_time(&mut self, begun: Instant) {
        let now = Instant::now();
        let since = self.counted.map_or(begun, |counted| counted.max(begun));
        self.counted = Some(now);
        let seconds = (now - since).as_secs_f64();
        if self.generated.is_empty() {
            self.stats.prefill_seconds += seconds;
            self.stats.time_to_first_token = self.stats.prefill_seconds;
        } else {
            self.stats.decode_seconds += seconds;
        }
    }

    /// Drops all but the first few tokens and the last half. The kept tokens run again at their new positions.
    fn shift(&mut self) {
        let sink = SINK.min(self.history.len() / 4);
        let rest = self.history[self.history.len() - self.history.len() / 2..].to_vec();
        self.history.truncate(sink);
        self.history.extend(rest);
    }

    /// The text that was held back, at the end of the answer.
    fn held_back(&mut self) -> Result<String> {
        let Some(TextSide { stream, stops }) = &mut self.text else { return Ok(String::new()) };
        let rest = stream.finish()?;
        let passed = stops.push(&rest);
        if passed.stopped {
            self.finished = Some(FinishReason::Stop);
            return Ok(passed.text);
        }
        Ok(passed.text + &stops.finish())
    }
}
