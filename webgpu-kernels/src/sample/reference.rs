//! The reference: plain loops with sums in f64.

use super::{IN_PROMPT, Past, Rules};

/// The token that a random number in 0..1 draws.
pub fn draw(logits: &[f32], rules: &Rules, history: Option<&[Past]>, random: f64) -> u32 {
    walk(logits, rules, history, random).0
}

/// True if random numbers and top-p values that differ by `margin` draw the same token.
pub fn is_clear(logits: &[f32], rules: &Rules, history: Option<&[Past]>, random: f64, margin: f64) -> bool {
    let token = draw(logits, rules, history, random);
    let same = |rules: &Rules, random: f64| draw(logits, rules, history, random.clamp(0.0, 0.999_999_9)) == token;
    let with = |change: f32| Rules { top_p: (rules.top_p + change).clamp(1e-6, 1.0), ..*rules };
    let (more, less) = (with(margin as f32), with(-margin as f32));
    let rules = if rules.top_p < 1.0 { [*rules, more, less] } else { [*rules; 3] };
    rules.iter().all(|rules| same(rules, random - margin) && same(rules, random + margin))
}

/// The token, and the number of tokens that remain after all limits.
fn walk(logits: &[f32], rules: &Rules, history: Option<&[Past]>, random: f64) -> (u32, usize) {
    let adjusted = |(i, &logit): (usize, &f32)| {
        let mut v = logit;
        if let Some(past) = history.map(|history| history[i]) {
            let count = past.count & !IN_PROMPT;
            v += past.bias;
            if count > 0 {
                v -= rules.presence + count as f32 * rules.frequency;
            }
            if past.count > 0 {
                v = if v < 0.0 { v * rules.repetition } else { v / rules.repetition };
            }
        }
        if v.is_nan() { f32::NEG_INFINITY } else { v }
    };
    let logits: Vec<f32> = logits.iter().enumerate().map(adjusted).collect();
    let mut best = 0;
    for (i, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = i;
        }
    }
    if rules.temperature == 0.0 || !logits[best].is_finite() {
        return (best as u32, 1);
    }
    let weight = |i: usize| ((f64::from(logits[i]) - f64::from(logits[best])) / f64::from(rules.temperature)).exp();
    // The most likely token first. A tie goes to the lower column.
    let mut kept: Vec<usize> = (0..logits.len()).collect();
    kept.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    if rules.top_k > 0 {
        kept.truncate(rules.top_k);
    }
    if rules.top_p < 1.0 {
        let wanted = f64::from(rules.top_p) * kept.iter().map(|&i| weight(i)).sum::<f64>();
        let mut sum = 0.0;
        let enough = kept.iter().position(|&i| {
            sum += weight(i);
            sum >= wanted
        });
        kept.truncate(enough.map_or(kept.len(), |at| at + 1));
    }
    kept.retain(|&i| weight(i) >= f64::from(rules.min_p));
    kept.sort_unstable();
    let mut left = random * kept.iter().map(|&i| weight(i)).sum::<f64>();
    for &i in &kept {
        left -= weight(i);
        if left < 0.0 {
            return (i as u32, kept.len());
        }
    }
    (kept.last().copied().unwrap_or(best) as u32, kept.len())
}
