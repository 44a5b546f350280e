//! [`Decoder`]: the forward pass of a decoder-only transformer, written once over [`Forward`].
//!
//! The engine calls [`Decoder::forward`]. The quantizer runs each [`Layer`] alone. `weights.rs` loads the weights.

use model_format::{DecoderConfig, Role};

use super::{
    chunks::{PREFILL_CHUNK, chunk_len},
    kv_cache::KvCache,
    kv_pool::KvPool,
    layer::Layer,
    parts::Parts,
};
use crate::{
    Result,
    ops::{Backend, Choose, Forward, Loading, RowSpan, Source},
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
pub struct Sequence<'a> {
    /// Token ids to run, at least one.
    pub tokens: &'a [u32],
    /// The tokens before. The forward pass appends `tokens`.
    pub cache: &'a mut KvCache,
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

    /// Texts of more tokens use the rotary frequencies of long texts. `usize::MAX` if no text does.
    pub fn long_from(&self) -> usize {
        self.rope.long_from()
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
    pub fn forward(&self, ops: &mut O, pool: &mut KvPool<O>, batch: &mut [Sequence<'_>]) -> O::Tensor {
        let hidden = self.hidden(ops, pool, batch);
        let mut end = 0;
        let last: Vec<usize> = batch.iter().map(|sequence| (end += sequence.tokens.len(), end - 1).1).collect();
        self.logits_of(ops, hidden, &last, end)
    }

    /// The logits `[last.len(), vocab_size]` of some of the rows of normed hidden states.
    pub(crate) fn logits_of(&self, ops: &mut O, hidden: O::Tensor, rows: &[usize], all: usize) -> O::Tensor {
        let hidden = if rows.len() < all { ops.select_rows(&hidden, rows) } else { hidden };
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
    pub fn hidden(&self, ops: &mut O, pool: &mut KvPool<O>, batch: &mut [Sequence<'_>]) -> O::Tensor {
        assert!(batch.iter().all(|sequence| !sequence.tokens.is_empty()), "forward: a sequence has no token");
        let is_long = |sequence: &Sequence<'_>| self.rope.is_long(sequence.cache.text_len(sequence.tokens.len()));
        let long = batch.iter().any(is_long);
        assert!(batch.iter().all(|sequence| is_long(sequence) == long), "forward: short and long texts in one batch");
        for sequence in batch.iter_mut().filter(|sequence| sequence.cache.is_long() != long) {
            let past = sequence.cache.restart(long);
            let mut left = &past[..];
            while !left.is_empty() {
                let tokens;
                (tokens, left) = left.split_at(self.chunk_len(ops, left.len(), PREFILL_CHUNK));
                self.run_tokens(ops, pool, &mut [Sequence { tokens, cache: &mut *sequence.cache }], long);
            }
        }
        self.run_tokens(ops, pool, batch, long)
    }

    /// [`Decoder::hidden`], with caches whose keys are rotated for texts of this length.
    fn run_tokens(&self, ops: &mut O, pool: &mut KvPool<O>, batch: &mut [Sequence<'_>], long: bool) -> O::Tensor {
        let tokens: Vec<u32> = batch.iter().flat_map(|sequence| sequence.tokens).copied().collect();
        let x = embed(ops, &self.config, &self.embedding, &tokens);
        let spans: Vec<RowSpan<'_>> = batch.iter().map(|s| s.cache.span(s.tokens.len())).collect();
        let normed = self.run(ops, pool, x, long, &spans);
        for sequence in batch {
            sequence.cache.extend(sequence.tokens);
        }
        normed
    }

    /// The residual stream before the first layer for tokens that the host may not know yet. [`Source::Chosen`] refers to `tokens`,
    /// which may be `None` if all ids are known.
    pub(crate) fn embed_sources(&self, ops: &mut O, sources: &[Source], tokens: Option<&O::Tokens>) -> O::Tensor
    where
        O: Choose,
    {
        let id = |source: &Source| match *source {
            Source::Id(id) => Some(id),
            Source::Chosen(_) => None,
        };
        match sources.iter().map(id).collect::<Option<Vec<u32>>>() {
            Some(ids) => embed(ops, &self.config, &self.embedding, &ids),
            None => {
                let tokens = tokens.expect("the tokens that sources refer to");
                ops.embedding_of(&self.embedding, sources, tokens, self.config.embedding_scale as f32)
            }
        }
    }

    /// Runs the residual stream `x` through the layers and the final norm. `spans` divide its rows among sequences. `long`: all
    /// texts use the rotary frequencies of long ones.
    pub(crate) fn run(
        &self,
        ops: &mut O,
        pool: &mut KvPool<O>,
        mut x: O::Tensor,
        long: bool,
        spans: &[RowSpan<'_>],
    ) -> O::Tensor {
        let (rope, rows) = (self.rope.table(long), ops.place_rows(spans));
        let (first_kv, mut kvs) = pool.layers_mut().split_first_mut().expect("a decoder has a layer");
        let mut y = self.layers[0].begin(ops, &x, rope, first_kv, &rows);
        for (i, layer) in self.layers.iter().enumerate() {
            let next = self.layers.get(i + 1).map(|next| {
                let (kv, rest) = std::mem::take(&mut kvs).split_first_mut().expect("keys and values for every layer");
                kvs = rest;
                (next, rope, kv)
            });
            let next_norm = next.as_ref().map_or(&self.final_norm, |(next, ..)| &next.input_norm);
            y = layer.finish(ops, &mut x, &y, next_norm, next, &rows);
        }
        y
    }
}

/// The residual stream `[tokens, hidden_size]` before the first layer.
pub fn embed<O: Forward>(ops: &mut O, config: &DecoderConfig, table: &O::Matrix, tokens: &[u32]) -> O::Tensor {
    ops.embedding(table, tokens, config.embedding_scale as f32)
}
