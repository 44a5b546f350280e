//! [`Decoder`]: the forward pass of a decoder-only transformer, once, over [`Ops`].
//!
//! The engine calls [`Decoder::forward`]; the quantizer walks [`Layer`] by layer. Where the weights come from is
//! `weights.rs`'s business.

use std::collections::HashMap;

use model_format::{DecoderConfig, Role, Weight, rope};

use crate::{
    KvCache, Result,
    ops::{AttentionShape, Ops, Span},
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
        let mut x = ops.embedding(&self.embedding, &tokens);
        let mut delta = None;
        for (i, layer) in self.layers.iter().enumerate() {
            let mut spans: Vec<_> = batch.iter_mut().map(|s| s.cache.span(i, s.tokens.len())).collect();
            delta = Some(layer.forward(ops, &mut x, delta, &self.rope, &mut spans));
        }
        for sequence in batch {
            sequence.cache.extend(sequence.tokens);
        }
        normed(ops, &mut x, delta, &self.final_norm, self.config.rms_norm_eps as f32)
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
    /// The last addition to the stream is left to whoever comes next, who does it together with a norm: `delta` is what
    /// the layer before left, the result is what this one leaves.
    pub fn forward(
        &self,
        ops: &mut O,
        x: &mut O::Tensor,
        delta: Option<O::Tensor>,
        rope: &O::Tensor,
        spans: &mut [Span<'_, O::Kv>],
    ) -> O::Tensor {
        let normed = normed(ops, x, delta, &self.input_norm, self.eps);
        let qkv = ops.linear(&normed, &self.qkv);
        let attended = ops.attention(&qkv, rope, self.attention, spans);
        let attention_out = ops.linear(&attended, &self.attention_out);
        let normed = ops.add_rms_norm(x, &attention_out, &self.post_attention_norm, self.eps);
        let gate_up = ops.linear(&normed, &self.gate_up);
        let activated = ops.swiglu(&gate_up);
        ops.linear(&activated, &self.down)
    }
}

/// The norm of the residual stream, after what is still to be added.
fn normed<O: Ops>(ops: &mut O, x: &mut O::Tensor, delta: Option<O::Tensor>, weight: &O::Tensor, eps: f32) -> O::Tensor {
    match delta {
        Some(delta) => ops.add_rms_norm(x, &delta, weight, eps),
        None => ops.rms_norm(x, weight, eps),
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
