//! The unquantized formats q0f16, q0f32 and q0bf16, for baselines, calibration and unquantized parameters.
//!
//! On the device, rows are padded with zeros to whole blocks of [`BLOCK_SIZE`] weights, so that kernels read them
//! through the interface of the quantized formats.

use half::f16;

/// WGSL that reads f16 weights through the interface of the quantized formats. With the flag `PLAIN_F32` it reads f32.
pub const UNPACK_WGSL: &str = include_str!("unpack.wgsl");

/// Number of weights in a block.
pub const BLOCK_SIZE: usize = 32;

/// Packs row-major f16 weights `[rows, cols]` into words for the device, two weights per word.
pub fn f16_words(cols: usize, weights: &[f16]) -> Vec<u32> {
    let padded = cols.next_multiple_of(BLOCK_SIZE);
    let mut words = Vec::with_capacity(weights.len() / cols.max(1) * padded / 2);
    for row in weights.chunks_exact(cols) {
        let bits = |c: usize| row.get(c).map_or(0, |w| u32::from(w.to_bits()));
        words.extend((0..padded).step_by(2).map(|c| bits(c) | bits(c + 1) << 16));
    }
    words
}

/// Packs row-major f32 weights `[rows, cols]` into words for the device, one weight per word.
pub fn f32_words(cols: usize, weights: &[f32]) -> Vec<u32> {
    let padded = cols.next_multiple_of(BLOCK_SIZE);
    let mut words = Vec::with_capacity(weights.len() / cols.max(1) * padded);
    for row in weights.chunks_exact(cols) {
        words.extend((0..padded).map(|c| row.get(c).map_or(0, |w| w.to_bits())));
    }
    words
}
