//! Compares all implementations available on this machine with plain loops over the codes of a matrix.

use half::f16;

use super::*;
use crate::{QuantFormat, quant::group_quant::Scales};

/// A pseudo-random sequence.
fn numbers(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed;
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    }
}

/// A matrix with random codes and scales of both signs.
fn matrix(format: &str, rows: usize, cols: usize) -> QuantizedMatrix {
    let format = QuantFormat::by_name(format).unwrap();
    let group = format.group().unwrap();
    let mut next = numbers((rows * cols) as u64);
    let codes: Vec<u8> = (0..rows * cols).map(|_| next() as u8 & group.largest_code()).collect();
    let scales: Vec<f16> =
        (0..rows * group.groups(cols)).map(|_| f16::from_f32(next() as f32 / (1u64 << 36) as f32 - 0.0625)).collect();
    format.pack(rows, cols, &codes, Scales::f16(&scales))
}

fn inputs(rows: usize, cols: usize) -> Vec<f32> {
    let mut next = numbers(7);
    (0..rows * cols)
        .map(|_| (next() as f32 / (1u64 << 30) as f32 - 1.0) * if next().is_multiple_of(50) { 40.0 } else { 1.0 })
        .collect()
}

fn all(matrix: &Interleaved, inputs: &RoundedRows) -> Vec<f32> {
    let mut output = vec![f32::NAN; inputs.len() * matrix.rows()];
    matrix.multiply(inputs, 0..matrix.strips(), &mut output);
    output
}

/// The definition: integer sums of codes minus `max_int`, times the scales.
fn plain(matrix: &QuantizedMatrix, rounded: &RoundedRows) -> Vec<f32> {
    let (group, codes) = (matrix.group(), matrix.codes());
    let groups = group.groups(matrix.cols);
    let mut output = Vec::new();
    for m in 0..rounded.len() {
        for n in 0..matrix.rows {
            let row = &codes[n * matrix.cols..][..matrix.cols];
            let mut sum = 0.0;
            for (i, codes) in row.chunks(group.group_size).enumerate() {
                let (input_scale, inputs) = group_of(rounded, m, i);
                let products = codes
                    .iter()
                    .zip(inputs)
                    .map(|(&code, &input)| (i64::from(code) - i64::from(group.max_int())) * i64::from(input));
                sum += products.sum::<i64>() as f32 * input_scale * matrix.q_scale.get(n * groups + i);
            }
            output.push(sum);
        }
    }
    output
}

/// The scale and the codes of group `i` of row `m`.
fn group_of(rounded: &RoundedRows, m: usize, i: usize) -> (f32, &[i8]) {
    let tile = tiles(0..rounded.len(), rounded.largest_tile).find(|tile| tile.contains(&m)).unwrap();
    let at = tile.start * rounded.groups + i * tile.len() + m - tile.start;
    let size = rounded.codes.len() / rounded.scales.len();
    (rounded.scales[at], &rounded.codes[at * size..][..size])
}

#[test]
fn every_implementation_equals_plain_loops_bit_for_bit() {
    // Complete and incomplete strips and groups, and various numbers of rows.
    for (format, n, k) in [("q4f16_1", 48, 96), ("q4f16_1", 37, 80), ("q3f16_1", 16, 120), ("q3f16_1", 5, 93)] {
        let matrix = matrix(format, n, k);
        let interleaved = Interleaved::new(&matrix).unwrap();
        for m in [1, 2, 3, 7, 8, 15, 70] {
            let inputs = inputs(m, k);
            let expected = plain(&matrix, &interleaved.round(&inputs));
            for instructions in Instructions::available() {
                let interleaved = interleaved.clone().with_instructions(instructions);
                let found = all(&interleaved, &interleaved.round(&inputs));
                assert_eq!(found, expected, "{format} {n} x {k}, {m} rows, {instructions:?}");
            }
        }
    }
}

#[test]
fn the_largest_sums_do_not_overflow() {
    for format in ["q4f16_1", "q3f16_1"] {
        let format = QuantFormat::by_name(format).unwrap();
        let group = format.group().unwrap();
        let (n, k) = (16, 4 * group.group_size);
        for code in [0, group.largest_code()] {
            let scales = vec![f16::ONE; n * group.groups(k)];
            let matrix = format.pack(n, k, &vec![code; n * k], Scales::f16(&scales));
            let interleaved = Interleaved::new(&matrix).unwrap();
            // NaN and infinities round to any code, including -128.
            for value in [1.0, -1.0, 1e30, f32::INFINITY, f32::NAN, -f32::NAN] {
                for instructions in Instructions::available() {
                    let interleaved = interleaved.clone().with_instructions(instructions);
                    let mut rounded = interleaved.round(&vec![value; 3 * k]);
                    rounded.scales.fill(1.0);
                    let expected = plain(&matrix, &rounded);
                    let found = all(&interleaved, &rounded);
                    assert_eq!(found, expected, "{}, {value}, {instructions:?}", format.name);
                }
            }
        }
    }
}

#[test]
fn eight_bit_matrices_are_rounded_to_nearest_and_equal_plain_loops() {
    for (n, k) in [(48, 96), (37, 80)] {
        let values: Vec<f32> = inputs(n, k).iter().map(|value| value * 0.1).collect();
        let interleaved = Interleaved::rounded(n, k, &values).unwrap();
        let rows: Vec<Vec<f32>> = (0..n).map(|row| interleaved.row(row)).collect();
        for (row, values) in rows.iter().zip(values.chunks(k)) {
            for (found, values) in row.chunks(32).zip(values.chunks(32)) {
                let largest = values.iter().fold(0f32, |max, value| max.max(value.abs()));
                let step = f16::from_f32(largest / 127.0).to_f32();
                for (found, value) in found.iter().zip(values) {
                    let expected = (value / step).round().clamp(-127.0, 127.0) * step;
                    let from_halfway = ((value / step).fract().abs() - 0.5).abs();
                    assert!(*found == expected || from_halfway < 1e-4, "{value}: {found}, not {expected}");
                }
            }
        }
        for m in [1, 3, 8, 13] {
            let inputs = inputs(m, k);
            let rounded = interleaved.round(&inputs);
            let mut expected = Vec::new();
            for m in 0..m {
                for (row, values) in rows.iter().enumerate() {
                    let mut sum = 0.0;
                    for (i, values) in values.chunks(32).enumerate() {
                        let scale =
                            interleaved.scales[row / STRIP * interleaved.group.groups(k) + i][row % STRIP].to_f32();
                        let (input_scale, inputs) = group_of(&rounded, m, i);
                        let products =
                            values.iter().zip(inputs).map(|(v, &input)| (v / scale) as i64 * i64::from(input));
                        sum += products.sum::<i64>() as f32 * input_scale * scale;
                    }
                    expected.push(sum);
                }
            }
            for instructions in Instructions::available() {
                let interleaved = interleaved.clone().with_instructions(instructions);
                assert_eq!(
                    all(&interleaved, &interleaved.round(&inputs)),
                    expected,
                    "{n} x {k}, {m}, {instructions:?}"
                );
            }
        }
    }
    // The largest sums of both signs: codes of +-127, and inputs of any code, including -128.
    for sign in [1.0, -1.0] {
        let interleaved = Interleaved::rounded(16, 64, &[sign * 127.0; 16 * 64]).unwrap();
        for (value, code) in [(1.0, 127), (-1.0, -127), (f32::NAN, 0)] {
            for instructions in Instructions::available() {
                let interleaved = interleaved.clone().with_instructions(instructions);
                let mut rounded = interleaved.round(&[value; 64]);
                rounded.scales.fill(1.0);
                let inputs: i32 = rounded.codes[..64].iter().map(|&code| i32::from(code)).sum();
                assert!(value.is_nan() || inputs == 64 * code);
                let found = all(&interleaved, &rounded);
                assert!(found.iter().all(|&y| y == sign * 127.0 * inputs as f32), "{sign}, {value}, {instructions:?}");
            }
        }
    }
    assert!(Interleaved::rounded(1, 32, &[1e8; 32]).is_none(), "the scale overflows f16");
    assert!(Interleaved::rounded(1, 32, &[f32::NAN; 32]).is_none(), "the scale is NaN");
}

#[test]
fn the_last_tiles_are_smaller_powers_of_two() {
    let sizes = |rows, largest| tiles(rows, largest).map(|tile| tile.len()).collect::<Vec<_>>();
    assert_eq!(sizes(64..79, 8), [8, 4, 2, 1]);
    assert_eq!(sizes(0..9, 4), [4, 4, 1]);
    assert_eq!(sizes(3..5, 1), [1, 1]);
    assert!(sizes(5..5, 8).is_empty());
}

#[test]
fn rows_equal_the_dequantized_matrix() {
    for (format, n, k) in [("q4f16_1", 37, 80), ("q3f16_1", 21, 93)] {
        let matrix = matrix(format, n, k);
        let interleaved = Interleaved::new(&matrix).unwrap();
        let found: Vec<f32> = (0..n).flat_map(|row| interleaved.row(row)).collect();
        assert_eq!(found, matrix.dequantize());
    }
}

#[test]
fn a_range_of_strips_gives_that_part_of_the_product() {
    let (m, n, k) = (3, 37, 64);
    let interleaved = Interleaved::new(&matrix("q4f16_1", n, k)).unwrap();
    let rounded = interleaved.round(&inputs(m, k));
    let whole = all(&interleaved, &rounded);
    let columns = interleaved.rows_of(&(1..3));
    assert_eq!(columns, 16..37);
    let mut part = vec![f32::NAN; m * columns.len()];
    interleaved.multiply(&rounded, 1..3, &mut part);
    for (part, whole) in part.chunks_exact(columns.len()).zip(whole.chunks_exact(n)) {
        assert_eq!(part, &whole[columns.clone()]);
    }
}

#[test]
fn inputs_are_rounded_to_the_nearest_of_255_multiples() {
    let interleaved = Interleaved::new(&matrix("q4f16_1", 16, 64)).unwrap();
    let values = inputs(1, 64);
    let rounded = interleaved.round(&values);
    for (group, (values, codes)) in values.chunks(32).zip(rounded.codes.chunks(32)).enumerate() {
        let largest = values.iter().fold(0f32, |max, value| max.max(value.abs()));
        assert_eq!(rounded.scales[group], largest / 127.0);
        for (value, &code) in values.iter().zip(codes) {
            assert_eq!(f32::from(code), (value * (127.0 / largest)).round_ties_even(), "{value}");
        }
        assert_eq!(rounded.offsets[group], -7 * codes.iter().map(|&code| i32::from(code)).sum::<i32>());
    }
    // Zero, and values too small for a finite inverse, add nothing.
    assert!(interleaved.round(&[0.0; 64]).codes.iter().all(|&code| code == 0));
    assert!(all(&interleaved, &interleaved.round(&[1e-40; 64])).iter().all(|&value| value == 0.0));
}
