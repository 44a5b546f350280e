//! [`Role`]: the function of a parameter in a decoder.

/// A parameter's function in the decoder. Numbers are layer indices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// The token embedding table `[vocab_size, hidden_size]`.
    Embedding,
    /// The norm before attention.
    InputNorm(usize),
    /// Joined query, key and value projections.
    Qkv(usize),
    /// Bias of the joined projections.
    QkvBias(usize),
    /// Query projection, if it is not joined.
    Query(usize),
    /// Key projection, if it is not joined.
    Key(usize),
    /// Value projection, if it is not joined.
    Value(usize),
    /// The norm of each query head.
    QueryNorm(usize),
    /// The norm of each key head.
    KeyNorm(usize),
    /// Attention output projection.
    AttentionOut(usize),
    /// Bias of the attention output projection.
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
    /// The output projection to the vocabulary, if it is not the embedding table.
    LmHead,
}

impl Role {
    /// True for a matrix of a layer. GPTQ quantizes these.
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

    /// True for the weight of a norm.
    pub fn is_norm(self) -> bool {
        !self.is_matrix() && !matches!(self, Role::QkvBias(_) | Role::AttentionOutBias(_))
    }

    /// True for a matrix, false for a norm or a bias. Only matrices can be quantized.
    pub fn is_matrix(self) -> bool {
        self.is_layer_matrix() || matches!(self, Role::Embedding | Role::LmHead)
    }

    /// Index of the parameter's layer.
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
