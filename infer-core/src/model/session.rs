//! [`Session`]: a decoder on one device with one conversation's cache.

use std::collections::VecDeque;

use super::{Decoder, Parts, Sequence, decoder::FEWEST_ROWS};
use crate::{KvCache, Result, ops::Choose, perplexity::token_losses, sampler::Sampler};
use model_format::DecoderConfig;

/// Most tokens that are run at a time, or a few more, so that scratch memory is bounded.
pub const PREFILL_CHUNK: usize = 512;

/// Does what a call does, and where a workgroup stopped waiting, does it again: the operations wait no more then.
macro_rules! again_after_expiry {
    ($session:ident, $call:expr) => {{
        let mark = $session.cache.mark();
        match $call.await {
            Err(error) if error.is_expired_wait() => {
                $session.turn_back();
                $session.cache.go_back(mark);
                $call.await
            }
            result => result,
        }
    }};
}

/// A decoder on one device with one conversation's cache.
pub struct Session<O: Choose> {
    ops: O,
    decoder: Decoder<O>,
    cache: KvCache<O>,
    /// The token that [`Session::most_likely`] returned last, when more were run behind it.
    returned: Option<u32>,
    /// The tokens that are chosen after it, each after the one before, in the order in which they come.
    ahead: VecDeque<O::Token>,
    /// What these are drawn with; `None`: they are the most likely ones.
    draw: Option<O::Draw>,
}

impl<O: Choose> Session<O> {
    /// Puts uploaded parts together, with room for `context` tokens.
    pub fn new(mut ops: O, config: &DecoderConfig, parts: Parts<O>, context: usize) -> Result<Session<O>> {
        let decoder = Decoder::new(&mut ops, config, parts, context)?;
        let cache = KvCache::new(&mut ops, config, context)?;
        Ok(Session { ops, decoder, cache, returned: None, ahead: VecDeque::new(), draw: None })
    }

    /// How many of the next `left` tokens to run at a time, at most about `most`, as [`Decoder::part_len`] has it.
    pub fn part_len(&self, left: usize, most: usize) -> usize {
        self.decoder.part_len(&self.ops, left, most)
    }

    /// The same where the logits after each of them are wanted, at most `most`.
    pub fn logits_len(&self, left: usize, most: usize) -> usize {
        let head = self.decoder.head_part_len(&self.ops, left, most - FEWEST_ROWS);
        self.part_len(left, most - FEWEST_ROWS).min(head)
    }

    /// The operations of its device.
    pub fn ops(&self) -> &O {
        &self.ops
    }

    /// The operations of its device.
    pub(crate) fn ops_mut(&mut self) -> &mut O {
        &mut self.ops
    }

    /// What the user should know of that happened on its device since this was last asked.
    pub fn take_notice(&mut self) -> Option<String> {
        self.ops.take_notice()
    }

    /// The conversation's cache.
    pub fn cache(&self) -> &KvCache<O> {
        &self.cache
    }

    /// The conversation's cache, to forget its end.
    pub fn cache_mut(&mut self) -> &mut KvCache<O> {
        self.turn_back();
        &mut self.cache
    }

    /// Runs `tokens` after what the cache holds: the logits `[vocab_size]` after the last.
    ///
    /// The device may fail in the middle; the cache then holds the chunks that were run.
    pub async fn logits(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        again_after_expiry!(self, self.logits_once(tokens))
    }

    async fn logits_once(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        self.turn_back();
        let logits = self.run(tokens).await?;
        self.ops.read(&logits).await
    }

    /// As [`Session::logits`], but only the most likely token, chosen on the device.
    ///
    /// After a single token the device goes on with the most likely one before the host asks for it. When the host does,
    /// the answer is on its way; when it asks for something else, what was run ahead is thrown away.
    pub async fn most_likely(&mut self, tokens: &[u32]) -> Result<u32> {
        again_after_expiry!(self, self.most_likely_once(tokens))
    }

    async fn most_likely_once(&mut self, tokens: &[u32]) -> Result<u32> {
        match (tokens, self.returned.take()) {
            (&[token], Some(returned)) if token == returned && !self.ahead.is_empty() && self.draw.is_none() => {
                self.cache.arrived(token);
            }
            _ => {
                self.turn_back();
                let logits = self.run(tokens).await?;
                self.ahead.push_back(self.ops.choose(&logits)?);
            }
        }
        if tokens.len() == 1 {
            let ahead = self.most_ahead();
            while self.ahead.len() <= ahead && self.cache.room() > 0 {
                let last = self.ahead.back().expect("a token was run");
                let logits = self.decoder.forward_chosen(&mut self.ops, last, &mut self.cache);
                self.ahead.push_back(self.ops.choose(&logits)?);
            }
        }
        self.next_ahead().await
    }

    /// As [`Session::most_likely`], but drawn by `sampler` on the device, after the `generated` tokens. `None`: the device
    /// leaves that to the host, and nothing was run.
    pub async fn drawn(&mut self, tokens: &[u32], sampler: &mut Sampler, generated: &[u32]) -> Result<Option<u32>> {
        again_after_expiry!(self, self.drawn_once(tokens, sampler, generated))
    }

    async fn drawn_once(&mut self, tokens: &[u32], sampler: &mut Sampler, generated: &[u32]) -> Result<Option<u32>> {
        match (tokens, self.returned.take()) {
            (&[token], Some(returned)) if token == returned && !self.ahead.is_empty() && self.draw.is_some() => {
                self.cache.arrived(token);
            }
            _ => {
                self.turn_back();
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
            let ahead = self.most_ahead();
            while self.ahead.len() <= ahead && self.cache.room() > 0 {
                let last = self.ahead.back().expect("a token was run");
                let logits = self.decoder.forward_chosen(&mut self.ops, last, &mut self.cache);
                let draw = self.draw.as_ref().expect("tokens are drawn");
                let random = sampler.random(self.ahead.len());
                self.ahead.push_back(self.ops.draw(&logits, draw, random)?);
            }
        }
        let token = self.next_ahead().await?;
        sampler.drawn();
        Ok(Some(token))
    }

    /// How many tokens to run before the first is known.
    fn most_ahead(&self) -> usize {
        // A text that turns from a short one into a long one has to be known.
        if self.decoder.depends_on_length() { 0 } else { self.ops.ahead() }
    }

    /// Waits for the first of the tokens that were run ahead.
    async fn next_ahead(&mut self) -> Result<u32> {
        let first = self.ahead.pop_front().expect("a token was run");
        let token = self.ops.token(first).await?;
        self.returned = Some(token);
        Ok(token)
    }

    /// The losses of a text that is run alone, as [`token_losses`] has them. The conversation is forgotten.
    pub async fn token_losses(&mut self, window: &[u32]) -> Result<Vec<f32>> {
        self.turn_back();
        again_after_expiry!(self, token_losses(&mut self.ops, &self.decoder, &mut self.cache, window))
    }

    /// Runs `tokens` after what the cache holds: the logits `[tokens, vocab_size]` after each of them.
    pub async fn all_logits(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        again_after_expiry!(self, self.all_logits_once(tokens))
    }

    async fn all_logits_once(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        self.turn_back();
        let hidden = self.decoder.hidden(&mut self.ops, &mut [Sequence { tokens, cache: &mut self.cache }]);
        let logits = self.decoder.head(&mut self.ops, &hidden);
        self.ops.read(&logits).await
    }

    /// Runs a token and a guess at what follows it, at once. Returns what is most likely after the token, and after each
    /// guessed token that was the most likely one; the cache forgets the guessed ones that were not.
    pub async fn check_guess(&mut self, token: u32, guess: &[u32]) -> Result<Vec<u32>> {
        again_after_expiry!(self, self.check_guess_once(token, guess))
    }

    async fn check_guess_once(&mut self, token: u32, guess: &[u32]) -> Result<Vec<u32>> {
        self.turn_back();
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

    /// Whether a guess may be run before it is known to be right: in some models the length of a text changes what came
    /// before.
    pub fn may_guess(&self) -> bool {
        !self.decoder.depends_on_length()
    }

    /// Runs one token and chooses the most likely after it, which is not waited for.
    pub(crate) fn run_token(&mut self, token: u32) -> Result<O::Token> {
        self.turn_back();
        let mut batch = [Sequence { tokens: &[token], cache: &mut self.cache }];
        let logits = self.decoder.forward(&mut self.ops, &mut batch);
        self.ops.choose(&logits)
    }

    /// Forgets what was run ahead.
    fn turn_back(&mut self) {
        self.returned = None;
        self.draw = None;
        self.ahead.clear();
        self.cache.forget_expected();
    }

    async fn run(&mut self, tokens: &[u32]) -> Result<O::Tensor> {
        assert!(!tokens.is_empty(), "a session runs at least one token");
        let mut left = tokens;
        loop {
            let tokens;
            (tokens, left) = left.split_at(self.part_len(left.len(), PREFILL_CHUNK));
            let logits = self.decoder.forward(&mut self.ops, &mut [Sequence { tokens, cache: &mut self.cache }]);
            if left.is_empty() {
                return Ok(logits);
            }
            // Waiting for each part bounds what is in flight, and gives a caller who drops the future a place to stop.
            let chosen = self.ops.choose(&logits)?;
            self.ops.token(chosen).await?;
        }
    }
}
