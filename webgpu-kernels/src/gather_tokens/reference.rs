//! The reference: plain loops.

use super::CHOSEN;

/// `sources` and `y`: `[count]`. `chosen`: any number of ids.
pub fn gather_tokens(sources: &[u32], chosen: &[u32], y: &mut [u32]) {
    for (y, &source) in y.iter_mut().zip(sources) {
        *y = if source < CHOSEN { source } else { chosen[((source - CHOSEN) as usize).min(chosen.len() - 1)] };
    }
}
