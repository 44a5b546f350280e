//! Codes in 32-bit words, the lowest bits first: the one packing that both `qweight` and `qzeros` use. Codes of 3 bits run
//! across the words, 32 of them in three.

/// Codes `[a, b]` along the second axis into words `[a, b * bits / 32]`. They must fill whole words.
pub(super) fn pack_rows(bits: usize, cols: usize, codes: &[u8]) -> Vec<u32> {
    assert_eq!(cols * bits % 32, 0, "GPTQ packs {bits} bits to a word: {cols} of them do not fill whole words");
    let mut packed = Vec::with_capacity(codes.len() * bits / 32);
    // A row fills whole words, so that rows need no ends.
    let (mut word, mut count) = (0u64, 0);
    for &code in codes {
        word |= u64::from(code) << count;
        count += bits;
        if count >= 32 {
            packed.push(word as u32);
            word >>= 32;
            count -= 32;
        }
    }
    packed
}

/// The codes of rows of words, as many as fit whole into each row of `row_words`.
pub(super) fn unpack_rows(bits: usize, row_words: usize, words: &[u32]) -> Vec<u8> {
    let mask = (1u64 << bits) - 1;
    let mut codes = Vec::with_capacity(words.len() * 32 / bits);
    for row in words.chunks_exact(row_words) {
        // Bits that are left over from the words before.
        let (mut left, mut count) = (0u64, 0);
        for &word in row {
            left |= u64::from(word) << count;
            count += 32;
            while count >= bits {
                codes.push((left & mask) as u8);
                left >>= bits;
                count -= bits;
            }
        }
    }
    codes
}

/// Words that `count` codes take.
pub(super) fn words(bits: usize, count: usize) -> usize {
    (count * bits).div_ceil(32)
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
