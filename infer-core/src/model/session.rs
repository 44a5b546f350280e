//! [`Session`]: a decoder on one device with one conversation's cache.

use super::{Decoder, Parts, Sequence};
use crate::{KvCache, Result, ops::Ops, perplexity::token_losses};
use model_format::DecoderConfig;

/// Most tokens that are run at a time, so that scratch memory and the length of a submission are bounded.
pub const PREFILL_CHUNK: usize = 512;

/// A decoder on one device with one conversation's cache.
pub struct Session<O: Ops> {
    ops: O,
    decoder: Decoder<O>,
    cache: KvCache<O>,
}

impl<O: Ops> Session<O> {
    /// Puts uploaded parts together, with room for `context` tokens.
    pub fn new(mut ops: O, config: &DecoderConfig, parts: Parts<O>, context: usize) -> Result<Session<O>> {
        let decoder = Decoder::new(&mut ops, config, parts, context)?;
        let cache = KvCache::new(&mut ops, config, context)?;
        Ok(Session { ops, decoder, cache })
    }

    /// The conversation's cache.
    pub fn cache(&self) -> &KvCache<O> {
        &self.cache
    }

    /// The conversation's cache, to forget its end.
    pub fn cache_mut(&mut self) -> &mut KvCache<O> {
        &mut self.cache
    }

    /// Runs `tokens` after what the cache holds: the logits `[vocab_size]` after the last.
    ///
    /// The device may fail in the middle; the cache then holds the chunks that were run.
    pub async fn logits(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        let logits = self.run(tokens).await?;
        self.ops.read(&logits).await
    }

    /// As [`Session::logits`], but only the most likely token, chosen on the device.
    pub async fn most_likely(&mut self, tokens: &[u32]) -> Result<u32> {
        let logits = self.run(tokens).await?;
        self.ops.argmax(&logits).await
    }

    /// The losses of a text that is run alone, as [`token_losses`] has them. The conversation's cache stays.
    pub async fn token_losses(&mut self, window: &[u32]) -> Result<Vec<f32>> {
        token_losses(&mut self.ops, &self.decoder, window).await
    }

    async fn run(&mut self, tokens: &[u32]) -> Result<O::Tensor> {
        let mut chunks = tokens.chunks(PREFILL_CHUNK).peekable();
        loop {
            let tokens = chunks.next().expect("a session runs at least one token");
            let logits = self.decoder.forward(&mut self.ops, &mut [Sequence { tokens, cache: &mut self.cache }]);
            if chunks.peek().is_none() {
                return Ok(logits);
            }
            // Waiting for each chunk bounds what is in flight, and gives a caller who drops the future a place to stop.
            self.ops.argmax(&logits).await?;
        }
    }
}
