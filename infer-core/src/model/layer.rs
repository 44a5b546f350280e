//! [`Layer`]: the forward pass of one decoder layer.

use model_format::{DecoderConfig, Role, decoder_config::Activation};

use super::{parts::Parts, rope_tables::RopeTable};
use crate::ops::{AttentionShape, Backend, Forward, LayerEnd, LayerStart};

/// One decoder layer.
pub struct Layer<O: Backend> {
    pub(super) input_norm: O::Tensor,
    qkv: O::Matrix,
    qkv_bias: Option<O::Tensor>,
    /// Norm weights of query heads and of key heads.
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

impl<O: Backend> Layer<O> {
    /// Assembles layer `i` from uploaded parameters. Panics if one is missing.
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
}

impl<O: Forward> Layer<O> {
    /// Runs the layer on the residual stream `x` `[rows, hidden_size]`. Returns the feed-forward's output; the caller adds it
    /// to `x`.
    pub fn forward(
        &self,
        ops: &mut O,
        x: &mut O::Tensor,
        rope: &RopeTable<O>,
        kv: &mut O::Kv,
        rows: &O::Rows,
    ) -> O::Tensor {
        let y = self.begin(ops, x, rope, kv, rows);
        let activated = self.activated(ops, x, &y);
        let down = ops.linear(&activated, &self.down);
        match &self.down_norm {
            Some(norm) => ops.rms_norm(&down, norm, self.eps),
            None => down,
        }
    }

    /// The attention output for the residual stream `x`.
    pub(super) fn begin(
        &self,
        ops: &mut O,
        x: &O::Tensor,
        rope: &RopeTable<O>,
        kv: &mut O::Kv,
        rows: &O::Rows,
    ) -> O::Tensor {
        if self.has_plain_attention() {
            let rope = rope.of(self.attention);
            let layer = LayerStart { qkv: &self.qkv, rope, shape: self.attention, kv, rows };
            return ops.begin_layer(x, &self.input_norm, self.eps, layer);
        }
        let normed = ops.rms_norm(x, &self.input_norm, self.eps);
        self.attended(ops, &normed, rope, kv, rows)
    }

    /// The attention output for the normed residual stream.
    fn attended(
        &self,
        ops: &mut O,
        normed: &O::Tensor,
        rope: &RopeTable<O>,
        kv: &mut O::Kv,
        rows: &O::Rows,
    ) -> O::Tensor {
        let rope = rope.of(self.attention);
        if self.has_plain_attention() {
            return ops.linear_attention(normed, &self.qkv, rope, self.attention, kv, rows);
        }
        let mut qkv = ops.linear(normed, &self.qkv);
        if let Some(bias) = &self.qkv_bias {
            ops.add_bias(&mut qkv, bias);
        }
        if let Some([query, key]) = &self.head_norms {
            ops.norm_heads(&mut qkv, query, key, self.attention, self.eps);
        }
        ops.attention(&qkv, rope, self.attention, kv, rows)
    }

    /// The input of the down projection for the attention output `y`. Adds the attention block to `x`.
    fn activated(&self, ops: &mut O, x: &mut O::Tensor, y: &O::Tensor) -> O::Tensor {
        let extras = (self.attention_out_bias.as_ref(), self.attention_out_norm.as_ref());
        let next = &self.post_attention_norm;
        let normed = block_end(ops, x, y, &self.attention_out, extras, next, self.eps);
        ops.linear_glu(&normed, &self.gate_up, self.activation)
    }

    /// Runs the rest of the layer after its attention output `y`, then the attention of the `next` layer. Returns its output.
    /// Without `next`, returns the final norm of `x`.
    pub(super) fn finish(
        &self,
        ops: &mut O,
        x: &mut O::Tensor,
        y: &O::Tensor,
        next_norm: &O::Tensor,
        next: Option<(&Layer<O>, &RopeTable<O>, &mut O::Kv)>,
        rows: &O::Rows,
    ) -> O::Tensor {
        let has_plain_end =
            self.attention_out_bias.is_none() && self.attention_out_norm.is_none() && self.down_norm.is_none();
        if has_plain_end {
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
                Some((next, rope, kv)) if next.has_plain_attention() => {
                    let rope = rope.of(next.attention);
                    let next = LayerStart { qkv: &next.qkv, rope, shape: next.attention, kv, rows };
                    ops.finish_layer(x, y, end, Some(next))
                }
                Some((next, rope, kv)) => {
                    let normed = ops.finish_layer(x, y, end, None);
                    next.attended(ops, &normed, rope, kv, rows)
                }
                None => ops.finish_layer(x, y, end, None),
            };
        }
        let activated = self.activated(ops, x, y);
        let normed = block_end(ops, x, &activated, &self.down, (None, self.down_norm.as_ref()), next_norm, self.eps);
        match next {
            Some((next, rope, kv)) => next.attended(ops, &normed, rope, kv, rows),
            None => normed,
        }
    }

    /// True if queries, keys and values have no biases, and queries and keys no norms.
    fn has_plain_attention(&self) -> bool {
        self.qkv_bias.is_none() && self.head_norms.is_none()
    }
}

/// The end of a block: adds the product of `y` and `matrix`, with an optional bias and norm, to the residual stream `x`.
/// Returns the RMS norm of `x` with the weights `next`.
fn block_end<O: Forward>(
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

/// The shape of the attention of layer `i`.
pub(crate) fn attention_shape(config: &DecoderConfig, i: usize) -> AttentionShape {
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
