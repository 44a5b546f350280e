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
    let inputs = tile.codes.as_chunks::<GROUP>().0.iter().zip(tile.scales.iter().zip(tile.offsets));
    for ((lines, scales), (codes, (input_scale, offset))) in weights.zip(inputs) {
        for ((output, dot), scale) in output[0].iter_mut().zip(dots(lines, codes)).zip(scales) {
            *output += (dot + offset) as f32 * input_scale * scale.to_f32();
        }
    }
    output
}

/// `sum over k of code[r, k] * input[k]` of a group, for each row `r`.
fn dots<const GROUP: usize, const STEPS: usize>(lines: &[Line; STEPS], inputs: &[i8; GROUP]) -> [i32; STRIP] {
    // At most 10 products of 15 * 128 each. The high halves of whole bytes are added up by themselves: sixteen times as much.
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
