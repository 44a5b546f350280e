//! [`Choose`]: the choice of the next tokens on the device.

use webgpu_kernels::sample::{Past, Rules};

use super::all::Ops;
use crate::Result;

/// How the next token is chosen from a row of logits.
#[derive(Debug)]
pub enum Choice<'a, D> {
    /// The column of the largest logit, the first among equals; NaN is never chosen.
    MostLikely,
    /// A draw by the random number `random` in `[0, 1)`. Adds the token to the sampler's history.
    Drawn {
        /// The sampler.
        by: &'a D,
        /// The random number.
        random: f64,
    },
}

/// A token to embed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// An id.
    Id(u32),
    /// The token that was chosen from this row of logits.
    Chosen(usize),
}

/// The choice of the next tokens on the device, so that the tokens after them can run before the host knows the first ones.
#[expect(async_fn_in_trait, reason = "the engine owns no thread, so no Send bound is wanted")]
pub trait Choose: Ops {
    /// Chosen tokens, one for each row of logits, possibly still on their way to the host.
    type Tokens;
    /// A sampler on the device.
    type Draw;

    /// Lookahead: the number of steps to run before the tokens of the first of them are read.
    fn ahead(&self) -> usize;

    /// A sampler by `rules` for rows of `cols` logits. `history` has the past of each column, if penalties or biases need it.
    /// `None` if the host should read the logits and draw itself.
    fn new_draw(&mut self, rules: Rules, cols: usize, history: Option<&[Past]>) -> Result<Option<Self::Draw>>;

    /// Chooses a token from each row of `logits` `[choices.len(), cols]`. Submits the recorded work.
    fn choose(&mut self, logits: &Self::Tensor, choices: &[Choice<'_, Self::Draw>]) -> Result<Self::Tokens>;

    /// `y[t, :] = scale * table[id of sources[t], :]`. [`Source::Chosen`] refers to `tokens`.
    fn embedding_of(
        &mut self,
        table: &Self::Matrix,
        sources: &[Source],
        tokens: &Self::Tokens,
        scale: f32,
    ) -> Self::Tensor;

    /// The ids of chosen tokens. Waits for the device.
    async fn tokens(&mut self, tokens: Self::Tokens) -> Result<Vec<u32>>;

    /// Takes the message for the user about a device fault that was worked around, if one occurred.
    fn take_notice(&mut self) -> Option<String> {
        None
    }
}
