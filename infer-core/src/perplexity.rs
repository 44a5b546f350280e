//! How surprised a model is by a text: the measure of what quantizing cost.

use crate::{
    Decoder, KvCache, Result,
    model::{Sequence, decoder::FEWEST_ROWS, session::PREFILL_CHUNK},
    ops::Ops,
};

/// Rows whose logits are held at a time: 256 rows of a vocabulary of 128,256 are 131 MB.
pub const ROWS: usize = 256;

/// The loss, `-ln p`, of each token of `window` after the first, given those before it in the window. `cache` has room
/// for the window and holds it afterwards, nothing else.
///
/// Perplexity is `exp` of the mean; the usual protocol takes windows of 2048 tokens that do not overlap.
pub async fn token_losses<O: Ops>(
    ops: &mut O,
    decoder: &Decoder<O>,
    cache: &mut KvCache<O>,
    window: &[u32],
) -> Result<Vec<f32>> {
    cache.begin_text(window.len());
    let mut losses = Vec::with_capacity(window.len().saturating_sub(1));
    let mut left = window;
    while !left.is_empty() {
        let tokens;
        (tokens, left) = left.split_at(decoder.part_len(ops, left.len(), PREFILL_CHUNK));
        let first = cache.len();
        let hidden = decoder.hidden(ops, &mut [Sequence { tokens, cache: &mut *cache }]);
        // The window's last token predicts nothing that is known.
        let predicted = tokens.len().min(window.len() - 1 - first);
        let mut begin = 0;
        while begin < predicted {
            let count = decoder.head_part_len(ops, predicted - begin, ROWS - FEWEST_ROWS);
            let rows: Vec<usize> = (begin..begin + count).collect();
            let targets = &window[first + begin + 1..][..rows.len()];
            let block = ops.select_rows(&hidden, &rows);
            let logits = decoder.head(ops, &block);
            losses.extend(ops.cross_entropy(&logits, targets).await?);
            begin += count;
        }
    }
    Ok(losses)
}
