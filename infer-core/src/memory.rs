//! Memory sizes of a model: [`Need`], and [`Room`] on its device. `loading/need.rs` computes the need.

/// Device memory that a model needs, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need {
    /// Weights.
    pub weights: u64,
    /// The part of `weights` that each decoded token reads. Excludes the embedding table unless it is also the head.
    pub weights_per_token: u64,
    /// Keys and values of `conversations` conversations of `context` tokens, and rotary tables.
    pub cache: u64,
    /// Activations of one prefill chunk (an estimate).
    pub scratch: u64,
    /// Limit of a conversation in tokens.
    pub context: usize,
    /// Number of conversations that the cache has room for.
    pub conversations: usize,
}

impl Need {
    /// The sum of weights, cache and scratch.
    pub fn total(&self) -> u64 {
        self.weights.saturating_add(self.cache).saturating_add(self.scratch)
    }
}

impl std::fmt::Display for Need {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (total, weights) = (size(self.total()), size(self.weights));
        let (cache, scratch) = (size(self.cache), size(self.scratch));
        let tokens = self.context.saturating_mul(self.conversations);
        write!(f, "{total} (weights {weights}, cache of {tokens} tokens {cache}, scratch {scratch})")
    }
}

/// Device memory available to a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Bytes the model may use.
    pub bytes: u64,
    /// Memory of the whole device in bytes. `None` if it is unknown, or if the caller set the limit.
    pub total: Option<u64>,
}

impl std::fmt::Display for Room {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", size(self.bytes))?;
        self.total.map_or(Ok(()), |total| write!(f, " of the device's {}", size(total)))
    }
}

/// A number of bytes in MiB or GiB.
fn size(bytes: u64) -> String {
    let mib = bytes as f64 / f64::from(1 << 20);
    if mib < 1000.0 { format!("{mib:.1} MiB") } else { format!("{:.2} GiB", mib / 1024.0) }
}
