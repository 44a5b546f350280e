//! The reference of products in integers, and what processors without other instructions run. Written so that a compiler
//! can make vector code of it.

use super::{Line, STRIP, Strip, Tile};

/// Products of one row of inputs (`ROWS` is 1) and a strip with `STEPS` lines a group.
pub fn multiply<const GROUP: usize, const STEPS: usize, const ROWS: usize>(
    strip: Strip<'_>,
    tile: Tile<'_>,
) -> [[f32; STRIP]; ROWS] {
    let mut output = [[0.0; STRIP]; ROWS];
    let weights = strip.lines.as_chunks::<STEPS>().0.iter().zip(strip.scales);
    let inputs = tile.codes.chunks_exact(GROUP).zip(tile.scales.iter().zip(tile.offsets));
    for ((lines, scales), (codes, (input_scale, offset))) in weights.zip(inputs) {
        for ((output, dot), scale) in output[0].iter_mut().zip(dots(lines, codes)).zip(scales) {
            *output += (dot + offset) as f32 * input_scale * scale.to_f32();
        }
    }
    output
}

/// `sum over k of code[r, k] * input[k]` of a group, for each row `r`.
fn dots<const STEPS: usize>(lines: &[Line; STEPS], inputs: &[i8]) -> [i32; STRIP] {
    // At most 10 products of 15 * 128 each.
    let mut sums = [0i16; 4 * STRIP];
    let (low, high) = inputs.split_at(4 * STEPS);
    for (line, (low, high)) in lines.iter().zip(low.chunks_exact(4).zip(high.chunks_exact(4))) {
        for (i, (sum, byte)) in sums.iter_mut().zip(line.0).enumerate() {
            *sum += i16::from(byte & 15) * i16::from(low[i % 4]) + i16::from(byte >> 4) * i16::from(high[i % 4]);
        }
    }
    let mut dots = [0; STRIP];
    for (dot, sums) in dots.iter_mut().zip(sums.chunks_exact(4)) {
        *dot = sums.iter().map(|&sum| i32::from(sum)).sum();
    }
    dots
}
