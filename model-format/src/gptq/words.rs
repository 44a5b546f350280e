//! Codes in 32-bit words, the lowest bits first: the one packing that both `qweight` and `qzeros` use.

/// Codes `[a, b]` along the second axis into words `[a, b / per_word]`.
pub(super) fn pack_rows(bits: usize, cols: usize, codes: &[u8]) -> Vec<u32> {
    let per_word = 32 / bits;
    assert_eq!(cols % per_word, 0, "GPTQ packs {per_word} codes to a word: {cols} is not a multiple");
    codes
        .chunks_exact(per_word)
        .map(|codes| codes.iter().rev().fold(0, |word, &code| word << bits | u32::from(code)))
        .collect()
}

/// The codes `[a, b]` of words `[a, b / per_word]`.
pub(super) fn unpack_rows(bits: usize, words: &[u32]) -> Vec<u8> {
    let mask = (1u64 << bits) - 1;
    words.iter().flat_map(|&word| (0..32 / bits).map(move |r| (u64::from(word) >> (bits * r) & mask) as u8)).collect()
}

/// `[a, b]` to `[b, a]`.
pub(super) fn transpose<T: Copy>(cols: usize, values: &[T]) -> Vec<T> {
    let rows = values.len() / cols;
    let mut out = Vec::with_capacity(values.len());
    for c in 0..cols {
        out.extend((0..rows).map(|r| values[r * cols + c]));
    }
    out
}
