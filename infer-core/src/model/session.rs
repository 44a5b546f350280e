//! [`Session`]: a decoder on one device with its keys and values. Runs tokens ahead of the host's reads.

use std::collections::HashMap;

use model_format::DecoderConfig;

use super::{
    chunks::{FEWEST_ROWS, PREFILL_CHUNK},
    decoder::{Decoder, Sequence},
    kv_cache::KvCache,
    kv_pool::KvPool,
    parts::Parts,
    perplexity::token_losses,
    steps::{StepChoice, StepResults, StepRows, Steps},
};
use crate::{
    Result,
    ops::{Choice, Choose, Source},
    sampling::sampler::Sampler,
};

/// Runs a call. If a workgroup's wait for another one expired, runs it again: chains are disabled by then.
macro_rules! retry_after_expired_wait {
    ($session:ident, $call:expr) => {{
        let mark = $session.cache.mark();
        match $call.await {
            Err(error) if error.is_expired_wait() => {
                $session.drop_lookahead();
                $session.cache.rewind(mark);
                $call.await
            }
            result => result,
        }
    }};
}

/// The id of the one text's sampler, which is present while its lookahead is drawn.
const TEXT: u64 = u64::MAX;

/// A decoder on one device, with its keys and values, and the cache of one text.
///
/// The methods that take tokens run one text, on all pages. [`Session::record`] runs steps of many sequences, on the pages that
/// its caller hands out. Drop the one text before ([`Session::cache_mut`]), and forget all sequences before the next one.
pub struct Session<O: Choose> {
    ops: O,
    decoder: Decoder<O>,
    pool: KvPool<O>,
    /// The one text.
    cache: KvCache,
    /// The token that was returned last, if `steps` continue it.
    returned: Option<u32>,
    /// For the one text, the lookahead: each step runs the token that the step before it chose.
    steps: Steps<O>,
    /// Samplers on the device, by the ids of [`Session::set_draw`] and [`TEXT`].
    draws: HashMap<u64, O::Draw>,
}

impl<O: Choose> Session<O> {
    /// Assembles uploaded parameters, with keys and values for `conversations` conversations of `context` tokens.
    pub fn new(
        mut ops: O,
        config: &DecoderConfig,
        parts: Parts<O>,
        context: usize,
        conversations: usize,
    ) -> Result<Session<O>> {
        let decoder = Decoder::new(&mut ops, config, parts, context)?;
        let (pool, mut caches) = KvPool::with_caches(&mut ops, config, conversations, context)?;
        let cache = caches.swap_remove(0);
        Ok(Session { ops, decoder, pool, cache, returned: None, steps: Steps::default(), draws: HashMap::new() })
    }

    /// The number of the next `left` tokens to run at a time: see [`Decoder::chunk_len`].
    pub fn chunk_len(&self, left: usize, limit: usize) -> usize {
        self.decoder.chunk_len(&self.ops, left, limit)
    }

    /// The number of the next `left` tokens to run at a time if the logits after each are needed. At most `limit`.
    pub fn logits_chunk_len(&self, left: usize, limit: usize) -> usize {
        let head = self.decoder.head_chunk_len(&self.ops, left, limit - FEWEST_ROWS);
        self.chunk_len(left, limit - FEWEST_ROWS).min(head)
    }

    /// The operations of its device.
    pub fn ops(&self) -> &O {
        &self.ops
    }

    /// The operations of its device.
    pub(crate) fn ops_mut(&mut self) -> &mut O {
        &mut self.ops
    }

    /// Takes the message for the user about a device fault that was worked around, if one occurred.
    pub fn take_notice(&mut self) -> Option<String> {
        self.ops.take_notice()
    }

    /// The cache of the one text.
    pub fn cache(&self) -> &KvCache {
        &self.cache
    }

    /// The cache of the one text, to truncate it. Drops the lookahead.
    pub fn cache_mut(&mut self) -> &mut KvCache {
        self.drop_lookahead();
        &mut self.cache
    }

    /// Runs `tokens` after those in the cache. Returns the logits `[vocab_size]` after the last one.
    ///
    /// After an error, the cache holds the chunks that ran before it.
    pub async fn logits(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        retry_after_expired_wait!(self, self.logits_once(tokens))
    }

    async fn logits_once(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        self.drop_lookahead();
        let rest = self.run_chunks(tokens).await?;
        let logits = self.forward(rest);
        self.ops.read(&logits).await
    }

    /// Runs `tokens` after those in the cache. Returns the most likely next token, chosen on the device.
    ///
    /// After a single token, the device continues with its own choice before the host asks for it. If the host asks for
    /// another token, the lookahead is dropped.
    pub async fn most_likely(&mut self, tokens: &[u32]) -> Result<u32> {
        retry_after_expired_wait!(self, self.most_likely_once(tokens))
    }

    async fn most_likely_once(&mut self, tokens: &[u32]) -> Result<u32> {
        if !self.continues(tokens, false) {
            self.drop_lookahead();
            self.run(tokens, None).await?;
        }
        if tokens.len() == 1 {
            while self.may_look_ahead() {
                self.run_chosen(None)?;
            }
        }
        self.next_ahead().await
    }

    /// Like [`Session::most_likely`], but `sampler` draws the token on the device. `generated` are the tokens of the answer so
    /// far. `Ok(None)` if the device leaves drawing to the host; then nothing ran.
    pub async fn drawn(&mut self, tokens: &[u32], sampler: &mut Sampler, generated: &[u32]) -> Result<Option<u32>> {
        retry_after_expired_wait!(self, self.drawn_once(tokens, sampler, generated))
    }

    async fn drawn_once(&mut self, tokens: &[u32], sampler: &mut Sampler, generated: &[u32]) -> Result<Option<u32>> {
        if !self.continues(tokens, true) {
            self.drop_lookahead();
            if !self.set_draw(TEXT, sampler, generated)? {
                return Ok(None);
            }
            self.run(tokens, Some(sampler.random(0))).await?;
        }
        if tokens.len() == 1 {
            while self.may_look_ahead() {
                self.run_chosen(Some(sampler.random(self.steps.len())))?;
            }
        }
        let token = self.next_ahead().await?;
        sampler.advance();
        Ok(Some(token))
    }

    /// True if the lookahead has the token after `tokens`. Then `tokens` is in the cache afterwards.
    fn continues(&mut self, tokens: &[u32], is_drawn: bool) -> bool {
        match (tokens, self.returned.take()) {
            (&[token], Some(returned))
                if token == returned && !self.steps.is_empty() && self.draws.contains_key(&TEXT) == is_drawn =>
            {
                self.cache.resolve(token);
                true
            }
            _ => false,
        }
    }

    fn may_look_ahead(&self) -> bool {
        self.steps.len() <= self.lookahead() && self.cache.room() > 0
    }

    /// Runs the token that the last recorded step chose. `random`: the random number of the sampler's draw; `None`: the most
    /// likely token.
    fn run_chosen(&mut self, random: Option<f64>) -> Result<()> {
        let rows = StepRows {
            tokens: vec![Source::Chosen(0)],
            past_len: self.cache.place(1),
            pages: self.cache.pages().to_vec(),
            results: 1,
            choice: match random {
                Some(random) => StepChoice::Drawn { by: TEXT, randoms: vec![random] },
                None => StepChoice::MostLikely,
            },
        };
        let last = self.steps.len().checked_sub(1);
        let long = self.cache.is_long();
        self.steps.record(&mut self.ops, &self.decoder, &mut self.pool, &self.draws, &[rows], last, long)?;
        self.cache.reserve();
        Ok(())
    }

    /// Number of tokens to run before the first of them is read.
    pub(crate) fn lookahead(&self) -> usize {
        // A text that becomes long is computed again, which needs all of its ids.
        if self.decoder.depends_on_length() { 0 } else { self.ops.ahead() }
    }

    /// Waits for the first token of the lookahead.
    async fn next_ahead(&mut self) -> Result<u32> {
        let results = self.steps.finish(&mut self.ops).await?;
        let token = results.tokens[0][0];
        self.returned = Some(token);
        Ok(token)
    }

    /// Records a step of many sequences: see [`Steps::record`]. Its results are read in order by [`Session::finish`].
    pub fn record(&mut self, rows: &[StepRows], chosen: Option<usize>, long: bool) -> Result<()> {
        assert!(self.cache.is_empty(), "record: drop the one text before");
        self.steps.record(&mut self.ops, &self.decoder, &mut self.pool, &self.draws, rows, chosen, long)
    }

    /// Puts a sampler on the device for [`StepChoice::Drawn`], for an answer of which `generated` are the tokens so far. False if
    /// the host should draw.
    pub fn set_draw(&mut self, id: u64, sampler: &Sampler, generated: &[u32]) -> Result<bool> {
        let vocab_size = self.decoder.config().vocab_size;
        let history = sampler.history(vocab_size, generated);
        let draw = self.ops.new_draw(sampler.rules(), vocab_size, history.as_deref())?;
        let is_on_device = draw.is_some();
        self.draws.extend(draw.map(|draw| (id, draw)));
        Ok(is_on_device)
    }

    /// Drops a sampler, if there is one.
    pub fn drop_draw(&mut self, id: u64) {
        self.draws.remove(&id);
    }

    /// Drops the one text and all recorded steps.
    pub fn clear(&mut self) {
        self.drop_lookahead();
        self.cache.truncate(0);
    }

    /// Steps whose results are not read yet.
    pub fn steps(&self) -> &Steps<O> {
        &self.steps
    }

    /// Waits for the results of the first recorded step.
    pub async fn finish(&mut self) -> Result<StepResults> {
        self.steps.finish(&mut self.ops).await
    }

    /// Texts of more tokens use the rotary frequencies of long texts.
    pub fn long_from(&self) -> usize {
        self.decoder.long_from()
    }

    /// Number of pages of the pool.
    pub fn pages(&self) -> usize {
        self.pool.pages()
    }

    /// The losses of a text alone, by [`token_losses`]. Replaces the content of the cache.
    pub async fn token_losses(&mut self, window: &[u32]) -> Result<Vec<f32>> {
        self.drop_lookahead();
        retry_after_expired_wait!(
            self,
            token_losses(&mut self.ops, &self.decoder, &mut self.pool, &mut self.cache, window)
        )
    }

    /// Runs `tokens` after those in the cache. Returns the logits `[tokens, vocab_size]` after each of them.
    pub async fn all_logits(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        retry_after_expired_wait!(self, self.all_logits_once(tokens))
    }

    async fn all_logits_once(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        self.drop_lookahead();
        let hidden =
            self.decoder.hidden(&mut self.ops, &mut self.pool, &mut [Sequence { tokens, cache: &mut self.cache }]);
        let logits = self.decoder.head(&mut self.ops, &hidden);
        self.ops.read(&logits).await
    }

    /// True if guesses may run. False for models in which a longer text changes the keys of earlier tokens.
    pub fn may_guess(&self) -> bool {
        !self.decoder.depends_on_length()
    }

    /// Runs one token and chooses the most likely one after it, without waiting.
    pub(crate) fn run_token(&mut self, token: u32) -> Result<O::Tokens> {
        self.drop_lookahead();
        let logits = self.forward(&[token]);
        self.ops.choose(&logits, &[Choice::MostLikely])
    }

    fn drop_lookahead(&mut self) {
        self.returned = None;
        self.drop_draw(TEXT);
        self.steps.clear();
        self.cache.drop_pending();
    }

    /// Runs `tokens`, and chooses the next one as [`Session::run_chosen`] does.
    async fn run(&mut self, tokens: &[u32], random: Option<f64>) -> Result<()> {
        let rest = self.run_chunks(tokens).await?;
        // A text that becomes long runs again first.
        let logits = self.forward(rest);
        let choice = match random {
            Some(random) => Choice::Drawn { by: &self.draws[&TEXT], random },
            None => Choice::MostLikely,
        };
        self.steps.push(self.ops.choose(&logits, &[choice])?);
        Ok(())
    }

    /// The logits `[1, vocab_size]` after `tokens`.
    fn forward(&mut self, tokens: &[u32]) -> O::Tensor {
        let mut batch = [Sequence { tokens, cache: &mut self.cache }];
        self.decoder.forward(&mut self.ops, &mut self.pool, &mut batch)
    }

    /// Runs all chunks of `tokens` but the last, which it returns. Waiting after each chunk bounds the work in flight, and lets
    /// the caller stop here by dropping the future.
    async fn run_chunks<'t>(&mut self, tokens: &'t [u32]) -> Result<&'t [u32]> {
        assert!(!tokens.is_empty(), "a session runs at least one token");
        let mut left = tokens;
        loop {
            let (chunk, rest) = left.split_at(self.chunk_len(left.len(), PREFILL_CHUNK));
            if rest.is_empty() {
                return Ok(left);
            }
            let logits = self.forward(chunk);
            let chosen = self.ops.choose(&logits, &[Choice::MostLikely])?;
            self.ops.tokens(chosen).await?;
            left = rest;
        }
    }
}
