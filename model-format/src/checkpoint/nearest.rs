//! [`nearest`]: suggests a similar name for a missing one.

/// The candidate with the smallest edit distance to `name`, if the distance is at most a third of the name's length.
pub fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<String> {
    let limit = name.len() / 3;
    candidates
        .filter(|c| c.len().abs_diff(name.len()) <= limit)
        .map(|c| (edits(name.as_bytes(), c.as_bytes()), c))
        .filter(|&(edits, _)| edits <= limit)
        .min()
        .map(|(_, c)| c.to_owned())
}

/// Levenshtein distance.
fn edits(a: &[u8], b: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_has_the_smallest_edit_distance() {
        let names = ["model.norm.weight", "transformer.h.0.attn.q.weight", "model.layers.0.self_attn.q.weight"];
        let near = |name| nearest(name, names.into_iter());
        assert_eq!(near("model.layers.0.self_attn.q_proj.weight").as_deref(), Some(names[2]));
        assert_eq!(near("model.norms.weight").as_deref(), Some(names[0]));
        assert_eq!(near("lm_head.weight"), None);
        assert_eq!(edits(b"kitten", b"sitting"), 3);
    }
}
