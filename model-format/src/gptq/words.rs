//! Packs codes into 32-bit words, lowest bits first. `qweight` and `qzeros` both use this packing.
//!
//! Three-bit codes cross word boundaries: 32 codes take three words.

/// Packs codes `[a, b]` along the second axis into words `[a, b * bits / 32]`.
///
/// # Panics
///
/// If a row does not fill whole words.
pub(super) fn pack_rows(bits: usize, cols: usize, codes: &[u8]) -> Vec<u32> {
    assert_eq!(cols * bits % 32, 0, "pack_rows: {cols} codes of {bits} bits do not fill whole words");
    let mut packed = Vec::with_capacity(codes.len() * bits / 32);
    // Rows fill whole words, so row boundaries need no handling.
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

/// Unpacks rows of `row_words` words. A row gives as many codes as fit completely.
pub(super) fn unpack_rows(bits: usize, row_words: usize, words: &[u32]) -> Vec<u8> {
    let mask = (1u64 << bits) - 1;
    let mut codes = Vec::with_capacity(words.len() * 32 / bits);
    for row in words.chunks_exact(row_words) {
        // Remaining bits of the previous words, and their number.
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

/// Number of words for `count` codes.
pub(super) fn words(bits: usize, count: usize) -> usize {
    (count * bits).div_ceil(32)
}

/// Transposes `[a, b]` to `[b, a]`, where `b` is `cols`.
pub(super) fn transpose<T: Copy>(cols: usize, values: &[T]) -> Vec<T> {
    let rows = values.len() / cols;
    let mut out = Vec::with_capacity(values.len());
    for c in 0..cols {
        out.extend((0..rows).map(|r| values[r * cols + c]));
    }
    out
}
