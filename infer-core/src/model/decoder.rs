//! [`Decoder`]: the forward pass of a decoder-only transformer, once, over [`Ops`].
//!
//! The engine calls [`Decoder::forward`]; the quantizer walks [`Layer`] by layer. Where the weights come from is
//! `weights.rs`'s business.

use std::collections::HashMap;

use model_format::{
    DecoderConfig, Role, Weight,
    decoder_config::Activation,
    rope::{self, RopeScaling},
};

use super::session::PREFILL_CHUNK;
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
    rope: RopeTables<O>,
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
            rope: RopeTables::new(ops, config, positions)?,
            config: config.clone(),
        })
    }

    /// The decoder's shape.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// Runs the next tokens of each sequence, as [`Decoder::hidden`] does: the logits `[sequences, vocab_size]` after the last token of each.
    pub fn forward(&self, ops: &mut O, batch: &mut [Sequence<'_, O>]) -> O::Tensor {
        let hidden = self.hidden(ops, batch);
        let mut end = 0;
        let last: Vec<usize> = batch.iter().map(|sequence| (end += sequence.tokens.len(), end - 1).1).collect();
        let hidden = if end > last.len() { ops.select_rows(&hidden, &last) } else { hidden };
        self.head(ops, &hidden)
    }

    /// The logits of normed hidden states `[rows, hidden_size]`.
    pub fn head(&self, ops: &mut O, hidden: &O::Tensor) -> O::Tensor {
        let mut logits = ops.linear(hidden, self.lm_head.as_ref().unwrap_or(&self.embedding));
        if let Some(cap) = self.config.final_logit_softcapping {
            ops.soft_cap(&mut logits, cap as f32);
        }
        logits
    }

    /// The normed output of the last layer `[rows, hidden_size]` for every row of the batch; the caches take the tokens in.
    ///
    /// Where long texts are rotated by frequencies of their own, a cache that was made for the other kind is made again
    /// first. Panics when a batch has texts of both kinds.
    pub fn hidden(&self, ops: &mut O, batch: &mut [Sequence<'_, O>]) -> O::Tensor {
        assert!(batch.iter().all(|sequence| !sequence.tokens.is_empty()), "forward: every sequence needs a token");
        let is_long = |sequence: &Sequence<'_, O>| self.rope.is_long(sequence.cache.len() + sequence.tokens.len());
        let long = batch.iter().any(is_long);
        assert!(batch.iter().all(|sequence| is_long(sequence) == long), "forward: short and long texts in one batch");
        for sequence in batch.iter_mut().filter(|sequence| sequence.cache.is_long() != long) {
            let past = sequence.cache.restart(long);
            for tokens in past.chunks(PREFILL_CHUNK) {
                self.run(ops, &mut [Sequence { tokens, cache: &mut *sequence.cache }], long);
            }
        }
        self.run(ops, batch, long)
    }

    /// [`Decoder::hidden`], with caches that fit.
    fn run(&self, ops: &mut O, batch: &mut [Sequence<'_, O>], long: bool) -> O::Tensor {
        let rope = self.rope.table(long);
        let tokens: Vec<u32> = batch.iter().flat_map(|sequence| sequence.tokens).copied().collect();
        let mut x = embed(ops, &self.config, &self.embedding, &tokens);
        let mut delta = None;
        for (i, layer) in self.layers.iter().enumerate() {
            let mut spans: Vec<_> = batch.iter_mut().map(|s| s.cache.span(i, s.tokens.len())).collect();
            delta = Some(layer.forward(ops, &mut x, delta, rope, &mut spans));
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
    qkv_bias: Option<O::Tensor>,
    /// Of queries and of keys.
    head_norms: Option<[O::Tensor; 2]>,
    attention: AttentionShape,
    attention_out: O::Matrix,
    attention_out_bias: Option<O::Tensor>,
    attention_out_norm: Option<O::Tensor>,
    post_attention_norm: O::Tensor,
    gate_up: O::Matrix,
    activation: Activation,
    down: O::Matrix,
    down_norm: Option<O::Tensor>,
    eps: f32,
}

impl<O: Ops> Layer<O> {
    /// Layer `i` out of uploaded parts. Panics when one is missing.
    pub fn new(config: &DecoderConfig, parts: &mut Parts<O>, i: usize) -> Layer<O> {
        Layer {
            input_norm: parts.take_vector(Role::InputNorm(i)),
            qkv: parts.take_matrix(Role::Qkv(i)),
            qkv_bias: parts.find_vector(Role::QkvBias(i)),
            head_norms: config
                .qk_norm
                .then(|| [Role::QueryNorm(i), Role::KeyNorm(i)].map(|role| parts.take_vector(role))),
            attention: attention_shape(config, i),
            attention_out: parts.take_matrix(Role::AttentionOut(i)),
            attention_out_bias: parts.find_vector(Role::AttentionOutBias(i)),
            attention_out_norm: parts.find_vector(Role::AttentionOutNorm(i)),
            post_attention_norm: parts.take_vector(Role::PostAttentionNorm(i)),
            gate_up: parts.take_matrix(Role::GateUp(i)),
            activation: config.hidden_act,
            down: parts.take_matrix(Role::Down(i)),
            down_norm: parts.find_vector(Role::DownNorm(i)),
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
        rope: &RopeTable<O>,
        spans: &mut [Span<'_, O::Kv>],
    ) -> O::Tensor {
        let normed = normed(ops, x, delta, &self.input_norm, self.eps);
        let mut qkv = ops.linear(&normed, &self.qkv);
        if let Some(bias) = &self.qkv_bias {
            ops.add_bias(&mut qkv, bias);
        }
        if let Some([query, key]) = &self.head_norms {
            qkv = ops.norm_heads(&qkv, query, key, self.attention, self.eps);
        }
        let attended = ops.attention(&qkv, rope.of(self.attention), self.attention, spans);
        let mut attention_out = ops.linear(&attended, &self.attention_out);
        if let Some(bias) = &self.attention_out_bias {
            ops.add_bias(&mut attention_out, bias);
        }
        if let Some(norm) = &self.attention_out_norm {
            attention_out = ops.rms_norm(&attention_out, norm, self.eps);
        }
        let normed = ops.add_rms_norm(x, &attention_out, &self.post_attention_norm, self.eps);
        let gate_up = ops.linear(&normed, &self.gate_up);
        let activated = match self.activation {
            Activation::Silu => ops.swiglu(&gate_up),
            Activation::GeluTanh => ops.geglu(&gate_up),
        };
        let down = ops.linear(&activated, &self.down);
        match &self.down_norm {
            Some(norm) => ops.rms_norm(&down, norm, self.eps),
            None => down,
        }
    }
}

/// The norm of the residual stream, after what is still to be added.
fn normed<O: Ops>(ops: &mut O, x: &mut O::Tensor, delta: Option<O::Tensor>, weight: &O::Tensor, eps: f32) -> O::Tensor {
    match delta {
        Some(delta) => ops.add_rms_norm(x, &delta, weight, eps),
        None => ops.rms_norm(x, weight, eps),
    }
}

/// The residual stream `[tokens, hidden_size]` that the first layer begins with.
pub fn embed<O: Ops>(ops: &mut O, config: &DecoderConfig, table: &O::Matrix, tokens: &[u32]) -> O::Tensor {
    let mut x = ops.embedding(table, tokens);
    if config.scales_embeddings() {
        ops.scale(&mut x, config.embedding_scale as f32);
    }
    x
}

/// The attention of layer `i` of `config`.
fn attention_shape(config: &DecoderConfig, i: usize) -> AttentionShape {
    AttentionShape {
        heads: config.num_attention_heads,
        kv_heads: config.num_key_value_heads,
        head_dim: config.head_dim,
        rotary_dim: config.rotary_dim,
        scale: 1.0 / (config.query_pre_attn_scalar as f32).sqrt(),
        soft_cap: config.attn_logit_softcapping.map(|cap| cap as f32),
        window: config.layer_windows[i],
    }
}

/// The rotary tables of a decoder: for all texts, or for short and for long ones.
pub struct RopeTables<O: Ops> {
    table: RopeTable<O>,
    /// The longest short text, and what longer ones are rotated by.
    long: Option<(usize, RopeTable<O>)>,
}

impl<O: Ops> RopeTables<O> {
    /// The tables for texts of up to `positions` tokens, on the device.
    pub fn new(ops: &mut O, config: &DecoderConfig, positions: usize) -> Result<RopeTables<O>> {
        let short = match config.rope_scaling {
            Some(RopeScaling::LongRope { original_max_position_embeddings: short, .. }) if short < positions => short,
            _ => return Ok(RopeTables { table: RopeTable::new(ops, config, positions)?, long: None }),
        };
        let long = RopeTable::new(ops, config, positions)?;
        Ok(RopeTables { table: RopeTable::new(ops, config, short)?, long: Some((short, long)) })
    }

    /// Whether a text of `len` tokens is one of the long ones.
    pub fn is_long(&self, len: usize) -> bool {
        self.long.as_ref().is_some_and(|(short, _)| len > *short)
    }

    /// The table of long texts, or of short ones.
    pub fn table(&self, long: bool) -> &RopeTable<O> {
        match &self.long {
            Some((_, table)) if long => table,
            _ => &self.table,
        }
    }
}

/// The rotary table `[positions, rotary_dim]` of every layer.
pub struct RopeTable<O: Ops> {
    table: O::Tensor,
    /// Of the layers that have a window, where it is another.
    of_windows: Option<O::Tensor>,
}

impl<O: Ops> RopeTable<O> {
    fn new(ops: &mut O, config: &DecoderConfig, positions: usize) -> Result<RopeTable<O>> {
        let mut upload =
            |config: &DecoderConfig| ops.upload(positions, config.rotary_dim, &rope::cos_sin_table(config, positions));
        let of_windows = config
            .window_rope_theta
            .map(|rope_theta| upload(&DecoderConfig { rope_theta, rope_scaling: None, ..config.clone() }));
        Ok(RopeTable { of_windows: of_windows.transpose()?, table: upload(config)? })
    }

    /// The table of layers with this attention.
    fn of(&self, attention: AttentionShape) -> &O::Tensor {
        self.of_windows.as_ref().filter(|_| attention.window.is_some()).unwrap_or(&self.table)
    }
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

    /// The vector of a place that not every decoder has.
    pub fn find_vector(&mut self, role: Role) -> Option<O::Tensor> {
        self.vectors.remove(&role)
    }

    /// The vector of a place. Panics when it was not added.
    pub fn take_vector(&mut self, role: Role) -> O::Tensor {
        self.find_vector(role).unwrap_or_else(|| panic!("no vector was loaded for {role:?}"))
    }
}
