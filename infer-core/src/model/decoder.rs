//! [`Decoder`]: the forward pass of a decoder-only transformer, written once over [`Forward`].
//!
//! The engine calls [`Decoder::forward`]. The quantizer runs each [`Layer`] alone. `weights.rs` loads the weights.

use model_format::{DecoderConfig, Role};

use super::{
    chunks::{PREFILL_CHUNK, chunk_len},
    kv_cache::KvCache,
    layer::Layer,
    parts::Parts,
    rope_tables::RopeTable,
};
use crate::{
    Result,
    ops::{Backend, Choose, Forward, Loading, Span},
};

pub use super::rope_tables::RopeTables;

/// A decoder-only transformer on a device.
pub struct Decoder<O: Backend> {
    config: DecoderConfig,
    embedding: O::Matrix,
    layers: Vec<Layer<O>>,
    final_norm: O::Tensor,
    /// `None` if the embedding table is the head.
    lm_head: Option<O::Matrix>,
    rope: RopeTables<O>,
}

/// The next tokens of one sequence, and its KV cache.
pub struct Sequence<'a, O: Backend> {
    /// Token ids to run, at least one.
    pub tokens: &'a [u32],
    /// The tokens before. The forward pass appends `tokens`.
    pub cache: &'a mut KvCache<O>,
}

impl<O: Loading> Decoder<O> {
    /// Assembles a decoder from uploaded parameters. `positions` is the longest supported context.
    ///
    /// Panics if a parameter is missing. The loaders check this earlier.
    pub fn new(ops: &mut O, config: &DecoderConfig, mut parts: Parts<O>, positions: usize) -> Result<Decoder<O>> {
        Ok(Decoder {
            embedding: parts.take_matrix(Role::Embedding),
            layers: (0..config.num_hidden_layers).map(|i| Layer::new(config, &mut parts, i)).collect(),
            final_norm: parts.take_vector(Role::FinalNorm),
            lm_head: (!config.tie_word_embeddings).then(|| parts.take_matrix(Role::LmHead)),
            rope: RopeTables::new(ops, config, positions)?,
            config: config.clone(),
        })
    }
}

impl<O: Forward> Decoder<O> {
    /// True if short and long texts use different rotary frequencies.
    pub fn depends_on_length(&self) -> bool {
        self.rope.depends_on_length()
    }

    /// The number of the next `left` tokens to run at a time: about `limit`, or fewer so that the device is not busy for
    /// long. `limit` is at least [`FEWEST_ROWS`](webgpu_kernels::gpu::FEWEST_ROWS).
    pub fn chunk_len(&self, ops: &O, left: usize, limit: usize) -> usize {
        let DecoderConfig { hidden_size, intermediate_size, num_attention_heads, head_dim, .. } = self.config;
        let largest = hidden_size * (2 * intermediate_size).max(num_attention_heads * head_dim);
        chunk_len(ops, left, limit, largest)
    }

    /// [`Decoder::chunk_len`] for the rows of [`Decoder::head`].
    pub fn head_chunk_len(&self, ops: &O, left: usize, limit: usize) -> usize {
        chunk_len(ops, left, limit, self.config.hidden_size * self.config.vocab_size)
    }

    /// The decoder's shape.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// Runs the next tokens of each sequence. Returns the logits `[sequences, vocab_size]` after the last token of each.
    ///
    /// Panics like [`Decoder::hidden`].
    pub fn forward(&self, ops: &mut O, batch: &mut [Sequence<'_, O>]) -> O::Tensor {
        let hidden = self.hidden(ops, batch);
        let mut end = 0;
        let last: Vec<usize> = batch.iter().map(|sequence| (end += sequence.tokens.len(), end - 1).1).collect();
        let hidden = if end > last.len() { ops.select_rows(&hidden, &last) } else { hidden };
        self.head(ops, &hidden)
    }

    /// The logits `[rows, vocab_size]` of normed hidden states `[rows, hidden_size]`.
    pub fn head(&self, ops: &mut O, hidden: &O::Tensor) -> O::Tensor {
        let mut logits = ops.linear(hidden, self.lm_head.as_ref().unwrap_or(&self.embedding));
        if let Some(cap) = self.config.final_logit_softcapping {
            ops.soft_cap(&mut logits, cap as f32);
        }
        logits
    }

    /// The normed output of the last layer `[rows, hidden_size]` for every row of the batch. Appends the tokens to the caches.
    ///
    /// If the model has other rotary frequencies for long texts, and a text becomes long, its cache is first computed again.
    /// Panics if a batch has both short and long texts.
    pub fn hidden(&self, ops: &mut O, batch: &mut [Sequence<'_, O>]) -> O::Tensor {
        assert!(batch.iter().all(|sequence| !sequence.tokens.is_empty()), "forward: a sequence has no token");
        let is_long = |sequence: &Sequence<'_, O>| self.rope.is_long(sequence.cache.text_len(sequence.tokens.len()));
        let long = batch.iter().any(is_long);
        assert!(batch.iter().all(|sequence| is_long(sequence) == long), "forward: short and long texts in one batch");
        for sequence in batch.iter_mut().filter(|sequence| sequence.cache.is_long() != long) {
            let past = sequence.cache.restart(long);
            let mut left = &past[..];
            while !left.is_empty() {
                let tokens;
                (tokens, left) = left.split_at(self.chunk_len(ops, left.len(), PREFILL_CHUNK));
                self.run_tokens(ops, &mut [Sequence { tokens, cache: &mut *sequence.cache }], long);
            }
        }
        self.run_tokens(ops, batch, long)
    }

    /// [`Decoder::hidden`], with caches whose keys are rotated for texts of this length.
    fn run_tokens(&self, ops: &mut O, batch: &mut [Sequence<'_, O>], long: bool) -> O::Tensor {
        let tokens: Vec<u32> = batch.iter().flat_map(|sequence| sequence.tokens).copied().collect();
        let x = embed(ops, &self.config, &self.embedding, &tokens);
        let mut caches: Vec<_> = batch.iter_mut().map(|s| (s.tokens.len(), &mut *s.cache)).collect();
        let normed = self.run(ops, x, self.rope.table(long), &mut caches);
        for sequence in batch {
            sequence.cache.extend(sequence.tokens);
        }
        normed
    }

    /// Runs a token that the host may not know yet. Returns the logits `[1, vocab_size]` after it. The cache reserves its place.
    pub fn forward_chosen(&self, ops: &mut O, token: &O::Token, cache: &mut KvCache<O>) -> O::Tensor
    where
        O: Choose,
    {
        let x = ops.embedding_of(&self.embedding, token, self.config.embedding_scale as f32);
        let normed = self.run(ops, x, self.rope.table(cache.is_long()), &mut [(1, cache)]);
        cache.reserve();
        self.head(ops, &normed)
    }

    /// Runs the residual stream `x` through the layers and the final norm. `caches`: rows of `x`, and the cache, per sequence.
    fn run(
        &self,
        ops: &mut O,
        mut x: O::Tensor,
        rope: &RopeTable<O>,
        caches: &mut [(usize, &mut KvCache<O>)],
    ) -> O::Tensor {
        let first = self.layers.first().expect("a decoder has a layer");
        let mut y = first.begin(ops, &x, rope, &mut spans_of(caches, 0));
        for (i, layer) in self.layers.iter().enumerate() {
            let next = self.layers.get(i + 1);
            let next_norm = next.map_or(&self.final_norm, |next| &next.input_norm);
            let mut spans = if next.is_some() { spans_of(caches, i + 1) } else { Vec::new() };
            y = layer.finish(ops, &mut x, &y, next_norm, next.map(|next| (next, rope, &mut spans[..])));
        }
        y
    }
}

/// The spans of all sequences in layer `i`.
fn spans_of<'c, O: Backend>(caches: &'c mut [(usize, &mut KvCache<O>)], i: usize) -> Vec<Span<'c, O::Kv>> {
    caches.iter_mut().map(|(rows, cache)| cache.span(i, *rows)).collect()
}

/// The residual stream `[tokens, hidden_size]` before the first layer.
pub fn embed<O: Forward>(ops: &mut O, config: &DecoderConfig, table: &O::Matrix, tokens: &[u32]) -> O::Tensor {
    ops.embedding(table, tokens, config.embedding_scale as f32)
}
