//! [`Session`]: a decoder on one device, with the KV cache of one conversation. Runs tokens ahead of the host's reads.

use std::collections::VecDeque;

use model_format::DecoderConfig;

use super::{
    chunks::{FEWEST_ROWS, PREFILL_CHUNK},
    decoder::{Decoder, Sequence},
    kv_cache::KvCache,
    parts::Parts,
    perplexity::token_losses,
};
use crate::{Result, ops::Choose, sampling::sampler::Sampler};

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

/// A decoder on one device, with the KV cache of one conversation.
pub struct Session<O: Choose> {
    ops: O,
    decoder: Decoder<O>,
    cache: KvCache<O>,
    /// The token that was returned last, if `ahead` continues it.
    returned: Option<u32>,
    /// Lookahead: the tokens chosen after `returned`, in order.
    ahead: VecDeque<O::Token>,
    /// The sampler of the lookahead. `None` if its tokens are the most likely ones.
    draw: Option<O::Draw>,
}

impl<O: Choose> Session<O> {
    /// Assembles uploaded parameters, with a KV cache of `context` tokens.
    pub fn new(mut ops: O, config: &DecoderConfig, parts: Parts<O>, context: usize) -> Result<Session<O>> {
        let decoder = Decoder::new(&mut ops, config, parts, context)?;
        let cache = KvCache::new(&mut ops, config, context)?;
        Ok(Session { ops, decoder, cache, returned: None, ahead: VecDeque::new(), draw: None })
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

    /// The conversation's cache.
    pub fn cache(&self) -> &KvCache<O> {
        &self.cache
    }

    /// The conversation's cache, to truncate it. Drops the lookahead.
    pub fn cache_mut(&mut self) -> &mut KvCache<O> {
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
        let logits = self.run(tokens).await?;
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
        match (tokens, self.returned.take()) {
            (&[token], Some(returned)) if token == returned && !self.ahead.is_empty() && self.draw.is_none() => {
                self.cache.resolve(token);
            }
            _ => {
                self.drop_lookahead();
                let logits = self.run(tokens).await?;
                self.ahead.push_back(self.ops.choose(&logits)?);
            }
        }
        if tokens.len() == 1 {
            let lookahead = self.lookahead();
            while self.ahead.len() <= lookahead && self.cache.room() > 0 {
                let last = self.ahead.back().expect("a token ran");
                let logits = self.decoder.forward_chosen(&mut self.ops, last, &mut self.cache);
                self.ahead.push_back(self.ops.choose(&logits)?);
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
        match (tokens, self.returned.take()) {
            (&[token], Some(returned)) if token == returned && !self.ahead.is_empty() && self.draw.is_some() => {
                self.cache.resolve(token);
            }
            _ => {
                self.drop_lookahead();
                let vocab_size = self.decoder.config().vocab_size;
                let history = sampler.history(vocab_size, generated);
                let Some(draw) = self.ops.new_draw(sampler.rules(), vocab_size, history.as_deref())? else {
                    return Ok(None);
                };
                let logits = self.run(tokens).await?;
                self.ahead.push_back(self.ops.draw(&logits, &draw, sampler.random(0))?);
                self.draw = Some(draw);
            }
        }
        if tokens.len() == 1 {
            let lookahead = self.lookahead();
            while self.ahead.len() <= lookahead && self.cache.room() > 0 {
                let last = self.ahead.back().expect("a token ran");
                let logits = self.decoder.forward_chosen(&mut self.ops, last, &mut self.cache);
                let draw = self.draw.as_ref().expect("tokens are drawn");
                let random = sampler.random(self.ahead.len());
                self.ahead.push_back(self.ops.draw(&logits, draw, random)?);
            }
        }
        let token = self.next_ahead().await?;
        sampler.advance();
        Ok(Some(token))
    }

    /// Number of tokens to run before the first of them is read.
    fn lookahead(&self) -> usize {
        // A text that becomes long is computed again, which needs all of its ids.
        if self.decoder.depends_on_length() { 0 } else { self.ops.ahead() }
    }

    /// Waits for the first token of the lookahead.
    async fn next_ahead(&mut self) -> Result<u32> {
        let first = self.ahead.pop_front().expect("a token ran");
        let token = self.ops.token(first).await?;
        self.returned = Some(token);
        Ok(token)
    }

    /// The losses of a text alone, by [`token_losses`]. Replaces the content of the cache.
    pub async fn token_losses(&mut self, window: &[u32]) -> Result<Vec<f32>> {
        self.drop_lookahead();
        retry_after_expired_wait!(self, token_losses(&mut self.ops, &self.decoder, &mut self.cache, window))
    }

    /// Runs `tokens` after those in the cache. Returns the logits `[tokens, vocab_size]` after each of them.
    pub async fn all_logits(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        retry_after_expired_wait!(self, self.all_logits_once(tokens))
    }

    async fn all_logits_once(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        self.drop_lookahead();
        let hidden = self.decoder.hidden(&mut self.ops, &mut [Sequence { tokens, cache: &mut self.cache }]);
        let logits = self.decoder.head(&mut self.ops, &hidden);
        self.ops.read(&logits).await
    }

    /// Runs `token` and `guess`, a guess of its continuation, in one pass. Returns the most likely token after `token`, and
    /// after each guessed token that was right. The cache keeps `token` and the right guesses.
    pub async fn check_guess(&mut self, token: u32, guess: &[u32]) -> Result<Vec<u32>> {
        retry_after_expired_wait!(self, self.check_guess_once(token, guess))
    }

    async fn check_guess_once(&mut self, token: u32, guess: &[u32]) -> Result<Vec<u32>> {
        self.drop_lookahead();
        let len = self.cache.len();
        let tokens = [&[token], guess].concat();
        let hidden = self.decoder.hidden(&mut self.ops, &mut [Sequence { tokens: &tokens, cache: &mut self.cache }]);
        let logits = self.decoder.head(&mut self.ops, &hidden);
        let mut chosen = self.ops.choose_rows(&logits, tokens.len()).await?;
        let right = guess.iter().zip(&chosen).take_while(|(guessed, chosen)| guessed == chosen).count();
        chosen.truncate(right + 1);
        self.cache.truncate(len + 1 + right);
        Ok(chosen)
    }

    /// True if guesses may run. False for models in which a longer text changes the keys of earlier tokens.
    pub fn may_guess(&self) -> bool {
        !self.decoder.depends_on_length()
    }

    /// Runs one token and chooses the most likely one after it, without waiting.
    pub(crate) fn run_token(&mut self, token: u32) -> Result<O::Token> {
        self.drop_lookahead();
        let mut batch = [Sequence { tokens: &[token], cache: &mut self.cache }];
        let logits = self.decoder.forward(&mut self.ops, &mut batch);
        self.ops.choose(&logits)
    }

    fn drop_lookahead(&mut self) {
        self.returned = None;
        self.draw = None;
        self.ahead.clear();
        self.cache.drop_pending();
    }

    async fn run(&mut self, tokens: &[u32]) -> Result<O::Tensor> {
        assert!(!tokens.is_empty(), "a session runs at least one token");
        let mut left = tokens;
        loop {
            let tokens;
            (tokens, left) = left.split_at(self.chunk_len(left.len(), PREFILL_CHUNK));
            let logits = self.decoder.forward(&mut self.ops, &mut [Sequence { tokens, cache: &mut self.cache }]);
            if left.is_empty() {
                return Ok(logits);
            }
            // Waiting after each chunk bounds the work in flight, and lets the caller stop here by dropping the future.
            let chosen = self.ops.choose(&logits)?;
            self.ops.token(chosen).await?;
        }
    }
}
