//! [`Choose`]: the choice of the next token on the device.

use webgpu_kernels::sample::{Past, Rules};

use super::all::Ops;
use crate::Result;

/// The choice of the next token on the device, so that the token after it can run before the host knows the first one.
#[expect(async_fn_in_trait, reason = "the engine owns no thread, so no Send bound is wanted")]
pub trait Choose: Ops {
    /// A chosen token, possibly still on its way to the host.
    type Token;
    /// A sampler on the device.
    type Draw;

    /// Lookahead: the number of tokens to run before the first of them is read.
    fn ahead(&self) -> usize;

    /// The column of the largest value of `logits` `[1, cols]`, the first among equals; NaN is never chosen.
    fn choose(&mut self, logits: &Self::Tensor) -> Result<Self::Token>;

    /// A sampler by `rules` for rows of `cols` logits. `history` has the past of each column, if penalties or biases need it.
    /// `None` if the host should read the logits and draw itself.
    fn new_draw(&mut self, rules: Rules, cols: usize, history: Option<&[Past]>) -> Result<Option<Self::Draw>>;

    /// Draws from `logits` `[1, cols]` by the random number `random` in `[0, 1)`. Adds the token to the sampler's history.
    fn draw(&mut self, logits: &Self::Tensor, with: &Self::Draw, random: f64) -> Result<Self::Token>;

    /// [`Choose::choose`] for each of the `rows` rows of logits. Waits for the device.
    async fn choose_rows(&mut self, logits: &Self::Tensor, rows: usize) -> Result<Vec<u32>>;

    /// `y[0, :] = scale * table[token, :]`.
    fn embedding_of(&mut self, table: &Self::Matrix, token: &Self::Token, scale: f32) -> Self::Tensor;

    /// The id of a token. Waits for the device.
    async fn token(&mut self, token: Self::Token) -> Result<u32>;

    /// Takes the message for the user about a device fault that was worked around, if one occurred.
    fn take_notice(&mut self) -> Option<String> {
        None
    }
}
