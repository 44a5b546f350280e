//! [`Losses`]: how well logits predict a text, and how much two models' predictions differ.

use webgpu_kernels::{cross_entropy::cross_entropy, kl_divergence::kl_divergence};

use super::backend::Backend;
use crate::Result;

/// How well logits predict a text, and how much two models' predictions differ. The defaults read the logits and compute on
/// the host.
#[expect(async_fn_in_trait, reason = "the engine owns no thread, so no Send bound is wanted")]
pub trait Losses: Backend {
    /// The loss of each row of `logits`, `ln sum over c of exp(logits[r, c]) - logits[r, targets[r]]`. Waits for the device.
    async fn cross_entropy(&mut self, logits: &Self::Tensor, targets: &[u32]) -> Result<Vec<f32>> {
        let logits = self.read(logits).await?;
        let rows = logits.chunks_exact(logits.len() / targets.len()).zip(targets);
        Ok(rows.map(|(logits, &target)| cross_entropy(logits, target)).collect())
    }

    /// The Kullback-Leibler divergence of each row of `others` `[rows, vocabulary]` from the same row of `logits`:
    /// `sum over c of p[c] * (ln p[c] - ln q[c])`, with `p = softmax(logits[r])` and `q = softmax(others[r])`. Waits for the
    /// device.
    async fn kl_divergence(&mut self, logits: &Self::Tensor, others: &Self::Tensor, rows: usize) -> Result<Vec<f32>> {
        let (logits, others) = (self.read(logits).await?, self.read(others).await?);
        let cols = logits.len() / rows;
        Ok(logits.chunks_exact(cols).zip(others.chunks_exact(cols)).map(|(p, q)| kl_divergence(p, q)).collect())
    }
}
