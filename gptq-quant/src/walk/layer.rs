//! Facts about the matrices of a decoder layer: their order, their inputs, and which of them write to the residual stream.

use model_format::{DecoderConfig, Role, params::joined_params};

/// The matrices of a layer in the order of the forward pass.
pub(super) fn matrix_roles(layer: usize) -> [Role; 4] {
    [Role::Qkv(layer), Role::AttentionOut(layer), Role::GateUp(layer), Role::Down(layer)]
}

/// The number of inputs of a layer's matrix.
pub(super) fn input_cols(config: &DecoderConfig, role: Role) -> usize {
    match role {
        Role::AttentionOut(_) => config.num_attention_heads * config.head_dim,
        Role::Down(_) => config.intermediate_size,
        _ => config.hidden_size,
    }
}

/// Bytes of `rows` f32 inputs of a layer's matrix.
pub(super) fn input_bytes(config: &DecoderConfig, role: Role, rows: usize) -> usize {
    rows * input_cols(config, role) * size_of::<f32>()
}

/// True if the outputs of a matrix are added to the residual stream unchanged: `o_proj` and `down_proj`, unless a norm follows.
pub(super) fn writes_stream(config: &DecoderConfig, role: Role) -> bool {
    let norm = match role {
        Role::AttentionOut(layer) => Role::AttentionOutNorm(layer),
        Role::Down(layer) => Role::DownNorm(layer),
        _ => return false,
    };
    joined_params(config).iter().all(|param| param.role != norm)
}
