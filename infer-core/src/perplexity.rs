//! How surprised a model is by a text: the measure of what quantizing cost.

use crate::{Decoder, KvCache, Result, model::Sequence, ops::Ops};

/// Rows whose logits are held at a time: 256 rows of a vocabulary of 128,256 are 131 MB.
const ROWS: usize = 256;

/// The loss, `-ln p`, of each token of `window` after the first, given those before it in the window.
///
/// Perplexity is `exp` of the mean; the usual protocol takes windows of 2048 tokens that do not overlap.
pub async fn token_losses<O: Ops>(ops: &mut O, decoder: &Decoder<O>, window: &[u32]) -> Result<Vec<f32>> {
    let mut cache = KvCache::new(ops, decoder.config(), window.len())?;
    let hidden = decoder.hidden(ops, &mut [Sequence { tokens: window, cache: &mut cache }]);
    let predicted = window.len() - 1;
    let mut losses = Vec::with_capacity(predicted);
    for first in (0..predicted).step_by(ROWS) {
        let rows: Vec<usize> = (first..predicted.min(first + ROWS)).collect();
        let block = ops.select_rows(&hidden, &rows);
        let logits = decoder.head(ops, &block);
        losses.extend(ops.cross_entropy(&logits, &window[first + 1..=first + rows.len()]).await?);
    }
    Ok(losses)
}
