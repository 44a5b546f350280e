//! [`Decoder`]: the forward pass of a decoder-only transformer, once, over [`Ops`].
//!
//! The engine calls [`Decoder::forward`]; the quantizer walks [`Layer`] by layer. Where the weights come from is
//! `weights.rs`'s business.

use std::collections::HashMap;

use model_format::{DecoderConfig, Role, Weight, decoder_config::Activation, rope, rope_scaling::RopeScaling};

use super::session::PREFILL_CHUNK;
use crate::{
    KvCache, Result,
    ops::{AttentionShape, Choose, LayerEnd, NextLayer, Ops, Span},
};

pub use webgpu_kernels::gpu::FEWEST_ROWS;

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

    /// Whether short and long texts are rotated differently.
    pub fn depends_on_length(&self) -> bool {
        self.rope.long.is_some()
    }

    /// How many of the next `left` tokens to run at a time: `most`, or fewer where that would keep the device busy for long.
    /// A few more are run rather than left for a part of their own: kernels for few rows add up in another order, and so
    /// it makes no difference in which parts a text is run. `most` is at least [`FEWEST_ROWS`].
    pub fn part_len(&self, ops: &O, left: usize, most: usize) -> usize {
        let DecoderConfig { hidden_size, intermediate_size, num_attention_heads, head_dim, .. } = self.config;
        let largest = hidden_size * (2 * intermediate_size).max(num_attention_heads * head_dim);
        part_len(ops, left, most, largest)
    }

    /// The same for rows of [`Decoder::head`], which has a matrix of its own size.
    pub fn head_part_len(&self, ops: &O, left: usize, most: usize) -> usize {
        part_len(ops, left, most, self.config.hidden_size * self.config.vocab_size)
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
        let is_long = |sequence: &Sequence<'_, O>| self.rope.is_long(sequence.cache.text_len(sequence.tokens.len()));
        let long = batch.iter().any(is_long);
        assert!(batch.iter().all(|sequence| is_long(sequence) == long), "forward: short and long texts in one batch");
        for sequence in batch.iter_mut().filter(|sequence| sequence.cache.is_long() != long) {
            let past = sequence.cache.restart(long);
            let mut left = &past[..];
            while !left.is_empty() {
                let tokens;
                (tokens, left) = left.split_at(self.part_len(ops, left.len(), PREFILL_CHUNK));
                self.run_tokens(ops, &mut [Sequence { tokens, cache: &mut *sequence.cache }], long);
            }
        }
        self.run_tokens(ops, batch, long)
    }

    /// [`Decoder::hidden`], with caches that fit.
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

    /// Runs a token that the host need not know yet: the logits `[1, vocab_size]` after it. The cache expects it.
    pub fn forward_chosen(&self, ops: &mut O, token: &O::Token, cache: &mut KvCache<O>) -> O::Tensor
    where
        O: Choose,
    {
        let x = ops.embedding_of(&self.embedding, token, self.config.embedding_scale as f32);
        let normed = self.run(ops, x, self.rope.table(cache.is_long()), &mut [(1, cache)]);
        cache.expect();
        self.head(ops, &normed)
    }

    /// Takes the residual stream `x` through the layers to the final norm. Of each sequence: rows of `x`, and cache.
    fn run(
        &self,
        ops: &mut O,
        mut x: O::Tensor,
        rope: &RopeTable<O>,
        caches: &mut [(usize, &mut KvCache<O>)],
    ) -> O::Tensor {
        let first = self.layers.first().expect("a decoder has layers");
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

/// Rows, and room in layer `i`'s cache, of each sequence.
fn spans_of<'c, O: Ops>(caches: &'c mut [(usize, &mut KvCache<O>)], i: usize) -> Vec<Span<'c, O::Kv>> {
    caches.iter_mut().map(|(rows, cache)| cache.span(i, *rows)).collect()
}

/// `most` of `left` rows, or as many as are multiplied by a matrix of so many values without keeping the device busy for
/// long.
fn part_len<O: Ops>(ops: &O, left: usize, most: usize, values: usize) -> usize {
    let part = ops.rows_at_once(2 * values as u64).clamp(FEWEST_ROWS, most) / FEWEST_ROWS * FEWEST_ROWS;
    if left < part + FEWEST_ROWS { left } else { part }
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
    /// The last addition to the stream, the result, is left to the caller.
    pub fn forward(
        &self,
        ops: &mut O,
        x: &mut O::Tensor,
        rope: &RopeTable<O>,
        spans: &mut [Span<'_, O::Kv>],
    ) -> O::Tensor {
        let y = self.begin(ops, x, rope, spans);
        let activated = self.activated(ops, x, &y);
        let down = ops.linear(&activated, &self.down);
        match &self.down_norm {
            Some(norm) => ops.rms_norm(&down, norm, self.eps),
            None => down,
        }
    }

    /// From the residual stream to attention's output.
    fn begin(&self, ops: &mut O, x: &O::Tensor, rope: &RopeTable<O>, spans: &mut [Span<'_, O::Kv>]) -> O::Tensor {
        if self.begins_plainly() {
            let rope = rope.of(self.attention);
            let layer = NextLayer { qkv: &self.qkv, rope, shape: self.attention, spans };
            return ops.begin_layer(x, &self.input_norm, self.eps, layer);
        }
        let normed = ops.rms_norm(x, &self.input_norm, self.eps);
        self.attended(ops, &normed, rope, spans)
    }

    /// Attention's output; `normed` is the input norm of the stream.
    fn attended(
        &self,
        ops: &mut O,
        normed: &O::Tensor,
        rope: &RopeTable<O>,
        spans: &mut [Span<'_, O::Kv>],
    ) -> O::Tensor {
        let rope = rope.of(self.attention);
        if self.begins_plainly() {
            return ops.linear_attention(normed, &self.qkv, rope, self.attention, spans);
        }
        let mut qkv = ops.linear(normed, &self.qkv);
        if let Some(bias) = &self.qkv_bias {
            ops.add_bias(&mut qkv, bias);
        }
        if let Some([query, key]) = &self.head_norms {
            ops.norm_heads(&mut qkv, query, key, self.attention, self.eps);
        }
        ops.attention(&qkv, rope, self.attention, spans)
    }

    /// From attention's output to what the last matrix takes in.
    fn activated(&self, ops: &mut O, x: &mut O::Tensor, y: &O::Tensor) -> O::Tensor {
        let extras = (self.attention_out_bias.as_ref(), self.attention_out_norm.as_ref());
        let next = &self.post_attention_norm;
        let normed = block_end(ops, x, y, &self.attention_out, extras, next, self.eps);
        ops.linear_glu(&normed, &self.gate_up, self.activation)
    }

    /// From attention's output `y` to that of the `next` layer, or without one to the stream's norm.
    fn finish(
        &self,
        ops: &mut O,
        x: &mut O::Tensor,
        y: &O::Tensor,
        next_norm: &O::Tensor,
        next: Option<(&Layer<O>, &RopeTable<O>, &mut [Span<'_, O::Kv>])>,
    ) -> O::Tensor {
        let ends_plainly =
            self.attention_out_bias.is_none() && self.attention_out_norm.is_none() && self.down_norm.is_none();
        if ends_plainly {
            let end = LayerEnd {
                out: &self.attention_out,
                out_norm: &self.post_attention_norm,
                gate_up: &self.gate_up,
                activation: self.activation,
                down: &self.down,
                next_norm,
                eps: self.eps,
            };
            return match next {
                Some((next, rope, spans)) if next.begins_plainly() => {
                    let rope = rope.of(next.attention);
                    let next = NextLayer { qkv: &next.qkv, rope, shape: next.attention, spans };
                    ops.finish_layer(x, y, end, Some(next))
                }
                Some((next, rope, spans)) => {
                    let normed = ops.finish_layer(x, y, end, None);
                    next.attended(ops, &normed, rope, spans)
                }
                None => ops.finish_layer(x, y, end, None),
            };
        }
        let activated = self.activated(ops, x, y);
        let normed = block_end(ops, x, &activated, &self.down, (None, self.down_norm.as_ref()), next_norm, self.eps);
        match next {
            Some((next, rope, spans)) => next.attended(ops, &normed, rope, spans),
            None => normed,
        }
    }

    /// Whether queries and keys have neither biases nor norms.
    fn begins_plainly(&self) -> bool {
        self.qkv_bias.is_none() && self.head_norms.is_none()
    }
}

/// The end of a block of the residual stream `x`: the product of `y` and `matrix`, with a bias and a norm of its own where
/// there are such, is added; returns the norm of the sum by `next`.
fn block_end<O: Ops>(
    ops: &mut O,
    x: &mut O::Tensor,
    y: &O::Tensor,
    matrix: &O::Matrix,
    (bias, norm): (Option<&O::Tensor>, Option<&O::Tensor>),
    next: &O::Tensor,
    eps: f32,
) -> O::Tensor {
    if bias.is_none() && norm.is_none() {
        return ops.linear_add_rms_norm(x, y, matrix, next, eps);
    }
    let mut product = ops.linear(y, matrix);
    if let Some(bias) = bias {
        ops.add_bias(&mut product, bias);
    }
    if let Some(norm) = norm {
        product = ops.rms_norm(&product, norm, eps);
    }
    ops.add_rms_norm(x, &product, next, eps)
}

/// The residual stream `[tokens, hidden_size]` that the first layer begins with.
pub fn embed<O: Ops>(ops: &mut O, config: &DecoderConfig, table: &O::Matrix, tokens: &[u32]) -> O::Tensor {
    ops.embedding(table, tokens, config.embedding_scale as f32)
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

    /// Adds a matrix that is on the device already, or puts it in the place of one that was added before.
    pub fn add_matrix(&mut self, role: Role, matrix: O::Matrix) {
        self.matrices.insert(role, matrix);
    }

    /// Adds a vector that is on the device already.
    pub(crate) fn add_vector(&mut self, role: Role, vector: O::Tensor) {
        self.vectors.insert(role, vector);
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
