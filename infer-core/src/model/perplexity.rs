//! The losses of a text: perplexity measures the cost of quantization.

use super::{
    chunks::{FEWEST_ROWS, PREFILL_CHUNK},
    decoder::{Decoder, Sequence},
    kv_cache::KvCache,
    kv_pool::KvPool,
};
use crate::{Result, ops::Ops};

/// Limit of the rows of logits in memory: 256 rows of a vocabulary of 128,256 are 131 MB.
pub const ROWS: usize = 256;

/// The loss, `-ln p`, of each token of `window` after the first, given the tokens before it in the window. The cache is
/// emptied first, and holds the window afterwards. Its capacity is at least `window.len()`.
///
/// Perplexity is `exp` of the mean loss. The usual protocol uses windows of 2048 tokens that do not overlap.
pub async fn token_losses<O: Ops>(
    ops: &mut O,
    decoder: &Decoder<O>,
    pool: &mut KvPool<O>,
    cache: &mut KvCache,
    window: &[u32],
) -> Result<Vec<f32>> {
    cache.begin_text(window.len());
    let mut losses = Vec::with_capacity(window.len().saturating_sub(1));
    let mut left = window;
    while !left.is_empty() {
        let tokens;
        (tokens, left) = left.split_at(decoder.chunk_len(ops, left.len(), PREFILL_CHUNK));
        let first = cache.len();
        let hidden = decoder.hidden(ops, pool, &mut [Sequence { tokens, cache: &mut *cache }]);
        // The last token of the window has no target.
        let predicted = tokens.len().min(window.len() - 1 - first);
        let mut begin = 0;
        while begin < predicted {
            let count = decoder.head_chunk_len(ops, predicted - begin, ROWS - FEWEST_ROWS);
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
