//! [`Request`], [`Step`] and [`Limits`]: the data that a caller and the scheduler exchange.

/// Sizes of the cache and of a step.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    /// Pages of the pool.
    pub pages: usize,
    /// Most tokens of a sequence. The last one has no row in the cache.
    pub context: usize,
    /// Texts with more tokens have other rotary frequencies. `usize::MAX` for models without such.
    pub long_from: usize,
    /// Most rows of a step.
    pub rows: usize,
    /// Most prefill rows of a step with decoding rows: bounds the time of the step.
    pub prefill: usize,
    /// Fewest rows of a chunk, except for shorter prompts. Kernels for fewer rows round differently.
    pub min_chunk: usize,
    /// Most rows of a sequence that are planned before their token is known.
    pub ahead: usize,
}

/// A text to continue.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    /// Names the request in all calls. No two present requests have the same.
    pub id: u64,
    /// Clients share the device equally.
    pub client: u64,
    /// Higher ones are served first.
    pub priority: i32,
    /// Time of the caller's clock, in seconds. Without a first token by then, the request is removed.
    pub deadline: Option<f64>,
    /// The prompt.
    pub tokens: Vec<u32>,
}

/// Rows of one sequence in a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Work {
    /// The request.
    pub id: u64,
    /// Work of an earlier epoch is void.
    pub epoch: u64,
    /// Position of the first row.
    pub start: usize,
    /// Number of rows.
    pub rows: usize,
    /// Number of leading rows with known tokens. The rest, at most one, has the token that the previous work of this request
    /// chooses.
    pub known: usize,
    /// True if the rows end at the last token. The step chooses the next one.
    pub wants_token: bool,
    /// Number of last rows with guessed tokens. One row comes before them, and the step chooses a token after each.
    pub guessed: usize,
    /// True for the rotary frequencies of long texts.
    pub is_long: bool,
}

/// A step for the device. All rows of a step may run at the same time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Step {
    /// At most one work per request. Decoding rows come first, then chunks of prompts.
    pub work: Vec<Work>,
    /// Requests that wait again.
    pub preempted: Vec<u64>,
    /// Requests that were removed, because their deadline passed before their first token.
    pub expired: Vec<u64>,
}
