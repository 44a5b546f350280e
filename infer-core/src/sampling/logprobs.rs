//! [`TokenLogprobs`]: log-probabilities of a token and its alternatives.

/// Limit of [`TokenLogprobs::top`].
pub const MOST_LOGPROBS: usize = 20;

/// Log-probabilities of a token and its alternatives.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprobs {
    /// The token.
    pub id: u32,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// The most likely tokens with their log-probabilities, most likely first.
    pub top: Vec<(u32, f32)>,
}

impl TokenLogprobs {
    /// Log-probabilities of `id` and of the `top` most likely tokens, from `logits` `[vocab_size]`.
    pub fn new(logits: &[f32], id: u32, top: usize) -> TokenLogprobs {
        let best = logits.iter().copied().filter(|logit| !logit.is_nan()).fold(f32::NEG_INFINITY, f32::max);
        let weight = |logit: f32| (f64::from(logit) - f64::from(best)).exp();
        let total = logits.iter().copied().filter(|logit| !logit.is_nan()).map(weight).sum::<f64>().ln();
        let logprob = |logit: f32| (f64::from(logit) - f64::from(best) - total) as f32;
        let mut ids: Vec<u32> = (0..logits.len() as u32).filter(|&id| !logits[id as usize].is_nan()).collect();
        let likelier = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
        let top = top.min(ids.len());
        if top > 0 && top < ids.len() {
            ids.select_nth_unstable_by(top - 1, likelier);
        }
        ids.truncate(top);
        ids.sort_unstable_by(likelier);
        let top = ids.into_iter().map(|id| (id, logprob(logits[id as usize]))).collect();
        TokenLogprobs { id, logprob: logprob(logits[id as usize]), top }
    }
}
