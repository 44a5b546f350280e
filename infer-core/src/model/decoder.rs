//! [`Decoder`]: the forward pass of a decoder-only transformer, once, over [`Ops`].
//!
//! The engine calls [`Decoder::forward`]; the quantizer walks [`Layer`] by layer. Where the weights come from is
//! `weights.rs`'s business.

use std::collections::HashMap;

use model_format::{DecoderConfig, Role, Weight, rope};

use crate::{
    KvCache, Result,
    ops::{AttentionShape, Choose, Ops, Span},
};

/// A decoder-only transformer on a device.
pub struct Decoder<O: Ops> {
    config: DecoderConfig,
    embedding: O::Matrix,
    layers: Vec<Layer<O>>,
    final_norm: O::Tensor,
    /// `None`: the embedding table is the head.
    lm_head: Option<O::Matrix>,
    rope: O::Tensor,
}

/// The next tokens of one sequence, and the cache that holds what came before.
pub struct Sequence<'a, O: Ops> {
    /// Token ids to run; at least one.
    pub tokens: &'a [u32],
    /// What came before; afterwards it holds `tokens` too.
    pub cache: &'a mut KvCache<O>,
}

impl<O: Ops> Decoder<O> {
    /// Puts uploaded parts together. `positions` is the longest context that will be asked for.
    ///
    /// Panics when a part is missing: the loaders check that before.
    pub fn new(ops: &mut O, config: &DecoderConfig, mut parts: Parts<O>, positions: usize) -> Result<Decoder<O>> {
        Ok(Decoder {
            embedding: parts.take_matrix(Role::Embedding),
            layers: (0..config.num_hidden_layers).map(|i| Layer::new(config, &mut parts, i)).collect(),
            final_norm: parts.take_vector(Role::FinalNorm),
            lm_head: (!config.tie_word_embeddings).then(|| parts.take_matrix(Role::LmHead)),
            rope: rope_table(ops, config, positions)?,
            config: config.clone(),
        })
    }

    /// The decoder's shape.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// Runs the next tokens of each sequence: the logits `[sequences, vocab_size]` after the last token of each.
    pub fn forward(&self, ops: &mut O, batch: &mut [Sequence<'_, O>]) -> O::Tensor {
        let hidden = self.hidden(ops, batch);
        let mut end = 0;
        let last: Vec<usize> = batch.iter().map(|sequence| (end += sequence.tokens.len(), end - 1).1).collect();
        let hidden = if end > last.len() { ops.select_rows(&hidden, &last) } else { hidden };
        self.head(ops, &hidden)
    }

    /// The logits of normed hidden states `[rows, hidden_size]`.
    pub fn head(&self, ops: &mut O, hidden: &O::Tensor) -> O::Tensor {
        ops.linear(hidden, self.lm_head.as_ref().unwrap_or(&self.embedding))
    }

    /// The normed output of the last layer `[rows, hidden_size]` for every row of the batch; the caches take the tokens in.
    pub fn hidden(&self, ops: &mut O, batch: &mut [Sequence<'_, O>]) -> O::Tensor {
        let tokens: Vec<u32> = batch.iter().flat_map(|sequence| sequence.tokens).copied().collect();
        assert!(batch.iter().all(|sequence| !sequence.tokens.is_empty()), "forward: every sequence needs a token");
        let x = ops.embedding(&self.embedding, &tokens);
        let mut caches: Vec<_> = batch.iter_mut().map(|s| (s.tokens.len(), &mut *s.cache)).collect();
        let normed = self.run(ops, x, &mut caches);
        for sequence in batch {
            sequence.cache.extend(sequence.tokens);
        }
        normed
    }

    /// Runs a token that the host need not know yet: the logits `[1, vocab_size]` after it. The cache expects it.
    pub fn forward_chosen(&self, ops: &mut O, token: &O::Token, cache: &mut KvCache<O>) -> O::Tensor
    where
        O: Choose,
    {
        let x = ops.embedding_of(&self.embedding, token);
        let normed = self.run(ops, x, &mut [(1, cache)]);
        cache.expect();
        self.head(ops, &normed)
    }

    /// Takes the residual stream `x` through the layers to the final norm. Of each sequence: rows of `x`, and cache.
    fn run(&self, ops: &mut O, mut x: O::Tensor, caches: &mut [(usize, &mut KvCache<O>)]) -> O::Tensor {
        let eps = self.config.rms_norm_eps as f32;
        let mut norms = self.layers.iter().map(|layer| &layer.input_norm).chain([&self.final_norm]);
        let mut normed = ops.rms_norm(&x, norms.next().expect("the final norm"), eps);
        for ((i, layer), next) in self.layers.iter().enumerate().zip(norms) {
            let mut spans: Vec<_> = caches.iter_mut().map(|(rows, cache)| cache.span(i, *rows)).collect();
            let activated = layer.activated(ops, &mut x, &normed, &self.rope, &mut spans);
            normed = ops.linear_add_rms_norm(&mut x, &activated, &layer.down, next, eps);
        }
        normed
    }
}

/// One decoder layer.
pub struct Layer<O: Ops> {
    input_norm: O::Tensor,
    qkv: O::Matrix,
    attention_out: O::Matrix,
    post_attention_norm: O::Tensor,
    gate_up: O::Matrix,
    down: O::Matrix,
    attention: AttentionShape,
    eps: f32,
}

impl<O: Ops> Layer<O> {
    /// Layer `i` out of uploaded parts. Panics when one is missing.
    pub fn new(config: &DecoderConfig, parts: &mut Parts<O>, i: usize) -> Layer<O> {
        Layer {
            input_norm: parts.take_vector(Role::InputNorm(i)),
            qkv: parts.take_matrix(Role::Qkv(i)),
            attention_out: parts.take_matrix(Role::AttentionOut(i)),
            post_attention_norm: parts.take_vector(Role::PostAttentionNorm(i)),
            gate_up: parts.take_matrix(Role::GateUp(i)),
            down: parts.take_matrix(Role::Down(i)),
            attention: attention_shape(config),
            eps: config.rms_norm_eps as f32,
        }
    }

    /// Runs the layer over the residual stream `x` `[rows, hidden_size]`.
    ///
    /// The last addition to the stream, the result, is left to the caller.
    pub fn forward(
        &self,
        ops: &mut O,
        x: &mut O::Tensor,
        rope: &O::Tensor,
        spans: &mut [Span<'_, O::Kv>],
    ) -> O::Tensor {
        let normed = ops.rms_norm(x, &self.input_norm, self.eps);
        let activated = self.activated(ops, x, &normed, rope, spans);
        ops.linear(&activated, &self.down)
    }

    /// The layer up to what its last matrix takes in; `normed` is the input norm of `x`.
    fn activated(
        &self,
        ops: &mut O,
        x: &mut O::Tensor,
        normed: &O::Tensor,
        rope: &O::Tensor,
        spans: &mut [Span<'_, O::Kv>],
    ) -> O::Tensor {
        let qkv = ops.linear(normed, &self.qkv);
        let attended = ops.attention(&qkv, rope, self.attention, spans);
        let normed = ops.linear_add_rms_norm(x, &attended, &self.attention_out, &self.post_attention_norm, self.eps);
        ops.linear_swiglu(&normed, &self.gate_up)
    }
}

/// The attention of every layer of `config`.
pub fn attention_shape(config: &DecoderConfig) -> AttentionShape {
    AttentionShape {
        heads: config.num_attention_heads,
        kv_heads: config.num_key_value_heads,
        head_dim: config.head_dim,
        scale: 1.0 / (config.head_dim as f32).sqrt(),
    }
}

/// The rotary table of `positions` positions, on the device.
pub fn rope_table<O: Ops>(ops: &mut O, config: &DecoderConfig, positions: usize) -> Result<O::Tensor> {
    ops.upload(positions, config.head_dim, &rope::cos_sin_table(config, positions))
}

/// Uploaded parameters, by their place in the decoder.
pub struct Parts<O: Ops> {
    matrices: HashMap<Role, O::Matrix>,
    vectors: HashMap<Role, O::Tensor>,
}

impl<O: Ops> Default for Parts<O> {
    fn default() -> Self {
        Parts { matrices: HashMap::new(), vectors: HashMap::new() }
    }
}

impl<O: Ops> Parts<O> {
    /// Takes one parameter to the device.
    pub fn add(&mut self, ops: &mut O, role: Role, weight: Weight) -> Result<()> {
        if role.is_matrix() {
            self.matrices.insert(role, ops.upload_matrix(role, weight)?);
        } else {
            let values = weight.into_f32();
            self.vectors.insert(role, ops.upload(1, values.len(), &values)?);
        }
        Ok(())
    }

    /// Adds a matrix that is on the device already, in the place of one that was added before.
    pub fn add_matrix(&mut self, role: Role, matrix: O::Matrix) {
        self.matrices.insert(role, matrix);
    }

    /// The matrix of a place. Panics when it was not added.
    pub fn take_matrix(&mut self, role: Role) -> O::Matrix {
        self.matrices.remove(&role).unwrap_or_else(|| panic!("no matrix was loaded for {role:?}"))
    }

    /// The vector of a place. Panics when it was not added.
    pub fn take_vector(&mut self, role: Role) -> O::Tensor {
        self.vectors.remove(&role).unwrap_or_else(|| panic!("no vector was loaded for {role:?}"))
    }
}
