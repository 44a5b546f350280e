//! [`Role`]: the place of a parameter in a decoder.

/// A parameter's place in the decoder. Numbers are layer indices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// The token embedding table `[vocab_size, hidden_size]`.
    Embedding,
    /// The norm before attention.
    InputNorm(usize),
    /// Joined query, key and value projections.
    Qkv(usize),
    /// The bias of these.
    QkvBias(usize),
    /// Query projection, where it is not joined with the others.
    Query(usize),
    /// Key projection, likewise.
    Key(usize),
    /// Value projection, likewise.
    Value(usize),
    /// The norm of each query head.
    QueryNorm(usize),
    /// The norm of each key head.
    KeyNorm(usize),
    /// Attention output projection.
    AttentionOut(usize),
    /// Its bias.
    AttentionOutBias(usize),
    /// The norm of the attention's output, before it is added to the residual stream.
    AttentionOutNorm(usize),
    /// The norm before the feed-forward.
    PostAttentionNorm(usize),
    /// Joined gate and up projections.
    GateUp(usize),
    /// Feed-forward output projection.
    Down(usize),
    /// The norm of the feed-forward's output, before it is added to the residual stream.
    DownNorm(usize),
    /// The norm after the last layer.
    FinalNorm,
    /// The output projection to the vocabulary, where it is not the embedding table.
    LmHead,
}

impl Role {
    /// Whether this is one of a layer's matrices, the ones that GPTQ quantizes.
    pub fn is_layer_matrix(self) -> bool {
        matches!(
            self,
            Role::Qkv(_)
                | Role::Query(_)
                | Role::Key(_)
                | Role::Value(_)
                | Role::AttentionOut(_)
                | Role::GateUp(_)
                | Role::Down(_)
        )
    }

    /// Whether this is the weight of a norm.
    pub fn is_norm(self) -> bool {
        !self.is_matrix() && !matches!(self, Role::QkvBias(_) | Role::AttentionOutBias(_))
    }

    /// Whether this is a matrix (and so may be quantized) and not a norm or a bias.
    pub fn is_matrix(self) -> bool {
        self.is_layer_matrix() || matches!(self, Role::Embedding | Role::LmHead)
    }

    /// The layer this belongs to.
    pub fn layer(self) -> Option<usize> {
        match self {
            Role::InputNorm(i)
            | Role::Qkv(i)
            | Role::QkvBias(i)
            | Role::Query(i)
            | Role::Key(i)
            | Role::Value(i)
            | Role::QueryNorm(i)
            | Role::KeyNorm(i)
            | Role::AttentionOut(i)
            | Role::AttentionOutBias(i)
            | Role::AttentionOutNorm(i)
            | Role::PostAttentionNorm(i)
            | Role::GateUp(i)
            | Role::Down(i)
            | Role::DownNorm(i) => Some(i),
            Role::Embedding | Role::FinalNorm | Role::LmHead => None,
        }
    }
}
