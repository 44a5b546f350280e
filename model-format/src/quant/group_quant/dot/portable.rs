//! Reference implementation of the integer products, also the fallback for processors without vector instructions.
//! Compilers can vectorize it.

use super::{Line, STRIP, Strip, Tile};

/// Multiplies one input row (`ROWS` is 1) by a strip with `STEPS` lines per group.
pub fn multiply<const GROUP: usize, const STEPS: usize, const ROWS: usize>(
    strip: Strip<'_>,
    tile: Tile<'_>,
) -> [[f32; STRIP]; ROWS] {
    let mut output = [[0.0; STRIP]; ROWS];
    let weights = strip.lines.as_chunks::<STEPS>().0.iter().zip(strip.scales);
    let inputs = tile.codes.as_chunks::<GROUP>().0.iter().zip(tile.scales.iter().zip(tile.offsets));
    for ((lines, scales), (codes, (input_scale, offset))) in weights.zip(inputs) {
        for ((output, dot), scale) in output[0].iter_mut().zip(dots(lines, codes)).zip(scales) {
            *output += (dot + offset) as f32 * input_scale * scale.to_f32();
        }
    }
    output
}

/// For each row `r`: the sum over `k` of `code[r, k] * input[k]` in a group.
fn dots<const GROUP: usize, const STEPS: usize>(lines: &[Line; STEPS], inputs: &[i8; GROUP]) -> [i32; STRIP] {
    // No overflow: at most 10 products of at most 15 * 128. Eight-bit codes have a separate sum for their high halves,
    // which count sixteen times.
    let (mut sums, mut sixteens) = ([0i16; 4 * STRIP], [0i16; 4 * STRIP]);
    let is_whole = 4 * STEPS == GROUP;
    let (low, high) = if is_whole { (&inputs[..], &inputs[..]) } else { inputs.split_at(4 * STEPS) };
    for (line, (low, high)) in lines.iter().zip(low.chunks_exact(4).zip(high.chunks_exact(4))) {
        for (i, byte) in line.0.into_iter().enumerate() {
            sums[i] += i16::from(byte & 15) * i16::from(low[i % 4]);
            *if is_whole { &mut sixteens[i] } else { &mut sums[i] } += i16::from(byte >> 4) * i16::from(high[i % 4]);
        }
    }
    let mut dots = [0; STRIP];
    for (dot, (sums, sixteens)) in dots.iter_mut().zip(sums.chunks_exact(4).zip(sixteens.chunks_exact(4))) {
        let sum = |sums: &[i16]| sums.iter().map(|&sum| i32::from(sum)).sum::<i32>();
        *dot = sum(sums) + 16 * sum(sixteens);
    }
    dots
}
