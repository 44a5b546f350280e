//! The complete list of a decoder's parameters. The converter writes this list, the engine reads it, the quantizer
//! walks it; there is no second list.

use crate::DecoderConfig;

/// One parameter: its MLC name, its place in the decoder, its shape, and what it is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Param {
    /// MLC's name, ending in `.weight`.
    pub name: String,
    /// Where the decoder uses it.
    pub role: Role,
    /// Extents, outermost first: `[n, k]` of a matrix with `n` outputs and `k` inputs, `[n]` of a norm.
    pub shape: Vec<usize>,
    /// Checkpoint tensors that make it up, joined by rows in this order.
    pub sources: Vec<Source>,
}

/// A checkpoint tensor that is the whole or a part of a [`Param`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Checkpoint name, ending in `.weight`.
    pub name: String,
    /// Rows it contributes: its first extent.
    pub rows: usize,
}

impl Source {
    /// The module of this tensor: its name without `.weight`. GPTQ names a matrix's parts `MODULE.qweight` and so on.
    pub fn module(&self) -> &str {
        self.name.strip_suffix(".weight").expect("sources end in .weight")
    }
}

/// A parameter's place in the decoder. Numbers are layer indices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// The token embedding table `[vocab_size, hidden_size]`.
    Embedding,
    /// The norm before attention.
    InputNorm(usize),
    /// Joined query, key and value projections.
    Qkv(usize),
    /// Attention output projection.
    AttentionOut(usize),
    /// The norm before the feed-forward.
    PostAttentionNorm(usize),
    /// Joined gate and up projections.
    GateUp(usize),
    /// Feed-forward output projection.
    Down(usize),
    /// The norm after the last layer.
    FinalNorm,
    /// The output projection to the vocabulary, where it is not the embedding table.
    LmHead,
}

impl Role {
    /// Whether this is one of a layer's matrices, the ones that GPTQ quantizes.
    pub fn is_layer_matrix(self) -> bool {
        matches!(self, Role::Qkv(_) | Role::AttentionOut(_) | Role::GateUp(_) | Role::Down(_))
    }

    /// Whether this is a matrix (and so may be quantized) and not a norm.
    pub fn is_matrix(self) -> bool {
        self.is_layer_matrix() || matches!(self, Role::Embedding | Role::LmHead)
    }

    /// The layer this belongs to.
    pub fn layer(self) -> Option<usize> {
        match self {
            Role::InputNorm(i)
            | Role::Qkv(i)
            | Role::AttentionOut(i)
            | Role::PostAttentionNorm(i)
            | Role::GateUp(i)
            | Role::Down(i) => Some(i),
            Role::Embedding | Role::FinalNorm | Role::LmHead => None,
        }
    }
}

/// Every parameter of `config`'s decoder, in the order of the forward pass.
pub fn params(config: &DecoderConfig) -> Vec<Param> {
    let arch = config.architecture();
    let hidden = config.hidden_size;
    let attention = config.num_attention_heads * config.head_dim;
    let kv = config.num_key_value_heads * config.head_dim;
    let inner = config.intermediate_size;

    let mut list = vec![whole("model.embed_tokens.weight".into(), Role::Embedding, vec![config.vocab_size, hidden])];
    for i in 0..config.num_hidden_layers {
        let name = |module: &str| format!("model.layers.{i}.{module}.weight");
        let joined = |fused: crate::arch::Fused, role, rows: &[usize], k| Param {
            name: name(fused.name),
            role,
            shape: vec![rows.iter().sum(), k],
            sources: fused.parts.iter().zip(rows).map(|(part, &rows)| Source { name: name(part), rows }).collect(),
        };
        list.extend([
            whole(name("input_layernorm"), Role::InputNorm(i), vec![hidden]),
            joined(arch.qkv, Role::Qkv(i), &[attention, kv, kv], hidden),
            whole(name("self_attn.o_proj"), Role::AttentionOut(i), vec![hidden, attention]),
            whole(name("post_attention_layernorm"), Role::PostAttentionNorm(i), vec![hidden]),
            joined(arch.gate_up, Role::GateUp(i), &[inner, inner], hidden),
            whole(name("mlp.down_proj"), Role::Down(i), vec![hidden, inner]),
        ]);
    }
    list.push(whole("model.norm.weight".into(), Role::FinalNorm, vec![hidden]));
    if !config.tie_word_embeddings {
        list.push(whole("lm_head.weight".into(), Role::LmHead, vec![config.vocab_size, hidden]));
    }
    list
}

/// A parameter that has the same name and shape in the checkpoint.
fn whole(name: String, role: Role, shape: Vec<usize>) -> Param {
    let sources = vec![Source { name: name.clone(), rows: shape[0] }];
    Param { name, role, shape, sources }
}
