//! Integer products by the vector units of x86-64 processors.
//!
//! The codes of a line are unsigned bytes. They are multiplied by four signed inputs, repeated. Each row's four
//! products are summed in its 32-bit lane. The order and the rounding are those of [`super::portable`].

use std::arch::x86_64::*;

use super::{Instructions, Line, STRIP, Strip, Tile};

/// The [`Instructions`] of this processor except `Portable`, the fastest last.
pub fn available() -> Vec<Instructions> {
    let mut available = Vec::new();
    // `f16c` converts the f16 scales.
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c") {
        available.push(Instructions::Avx2);
        if is_x86_feature_detected!("avxvnni") {
            available.push(Instructions::AvxVnni);
        }
    }
    if is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vnni")
    {
        available.push(Instructions::Avx512Vnni);
    }
    available
}

macro_rules! safe {
    ($(#[$doc:meta] $name:ident $tile:ident)+) => {
        $(#[$doc]
        pub fn $name<const GROUP: usize, const STEPS: usize, const ROWS: usize>(
            strip: Strip<'_>,
            tile: Tile<'_>,
        ) -> [[f32; STRIP]; ROWS] {
            // SAFETY: a matrix selects these instructions only if `available` lists them.
            unsafe { $tile::<GROUP, STEPS, ROWS>(strip, tile) }
        })+
    };
}

safe!(
    /// Multiplies `ROWS` input rows by a strip with `STEPS` lines per group, using [`Instructions::Avx512Vnni`].
    avx512_vnni tile_512
    /// The same, using [`Instructions::AvxVnni`].
    avx_vnni tile_256_vnni
    /// The same, using [`Instructions::Avx2`].
    avx2 tile_256
);

/// Four inputs as a word, the first in its low byte.
#[inline(always)]
fn four<const GROUP: usize>(codes: &[i8; GROUP], index: usize) -> i32 {
    let codes = &codes[4 * index..][..4];
    i32::from_le_bytes([codes[0] as u8, codes[1] as u8, codes[2] as u8, codes[3] as u8])
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn tile_512<const GROUP: usize, const STEPS: usize, const ROWS: usize>(
    strip: Strip<'_>,
    tile: Tile<'_>,
) -> [[f32; STRIP]; ROWS] {
    let low = _mm512_set1_epi8(15);
    let mut sums = [_mm512_setzero_ps(); ROWS];
    let weights = strip.lines.as_chunks::<STEPS>().0.iter().zip(strip.scales);
    let codes = tile.codes.as_chunks::<GROUP>().0.as_chunks::<ROWS>().0;
    let inputs = codes.iter().zip(tile.scales.as_chunks::<ROWS>().0).zip(tile.offsets.as_chunks::<ROWS>().0);
    for ((lines, scales), ((codes, input_scales), offsets)) in weights.zip(inputs) {
        let mut dots = [_mm512_setzero_si512(); ROWS];
        for row in 0..ROWS {
            dots[row] = _mm512_set1_epi32(offsets[row]);
        }
        // With few rows, use a second chain of sums, so that an instruction need not wait for the previous one.
        let mut more = [_mm512_setzero_si512(); ROWS];
        for (step, line) in lines.iter().enumerate() {
            // SAFETY: a line has 64 bytes and is aligned to 64 bytes.
            let bytes = unsafe { _mm512_load_si512((&raw const *line).cast()) };
            if 4 * STEPS == GROUP {
                // Eight-bit codes.
                for row in 0..ROWS {
                    let sums = if ROWS < 4 && step % 2 == 1 { &mut more[row] } else { &mut dots[row] };
                    *sums = _mm512_dpbusd_epi32(*sums, bytes, _mm512_set1_epi32(four(&codes[row], step)));
                }
                continue;
            }
            let (lows, highs) = (_mm512_and_si512(bytes, low), _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), low));
            for row in 0..ROWS {
                let second = if ROWS < 4 { &mut more[row] } else { &mut dots[row] };
                *second = _mm512_dpbusd_epi32(*second, highs, _mm512_set1_epi32(four(&codes[row], STEPS + step)));
                dots[row] = _mm512_dpbusd_epi32(dots[row], lows, _mm512_set1_epi32(four(&codes[row], step)));
            }
        }
        // SAFETY: sixteen f16 scales have 32 bytes.
        let scales = _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(scales.as_ptr().cast()) });
        for row in 0..ROWS {
            let dot = if ROWS < 4 { _mm512_add_epi32(dots[row], more[row]) } else { dots[row] };
            let dot = _mm512_mul_ps(_mm512_cvtepi32_ps(dot), _mm512_set1_ps(input_scales[row]));
            sums[row] = _mm512_add_ps(sums[row], _mm512_mul_ps(dot, scales));
        }
    }
    let mut output = [[0.0; STRIP]; ROWS];
    for (output, sums) in output.iter_mut().zip(sums) {
        // SAFETY: sixteen f32 values have 64 bytes.
        unsafe { _mm512_storeu_ps(output.as_mut_ptr(), sums) };
    }
    output
}

/// The first or the second half of a line.
#[inline]
#[target_feature(enable = "avx2")]
fn half_line(line: &Line, half: usize) -> __m256i {
    let bytes: &[u8; 32] = if half == 0 { line.0.first_chunk() } else { line.0.last_chunk() }.expect("64 bytes");
    // SAFETY: the array has 32 bytes.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

/// Scales of the first or the last eight rows.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn half_scales(scales: &[half::f16; STRIP], half: usize) -> __m256 {
    let scales: &[half::f16; 8] = if half == 0 { scales.first_chunk() } else { scales.last_chunk() }.expect("16");
    // SAFETY: eight f16 scales have 16 bytes.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(scales.as_ptr().cast()) })
}

/// Multiplies a tile with vectors of 32 bytes: the first eight rows of the strip, then the other eight. `$dot` adds
/// products to sums, which start at zero. `$finish` converts these sums to 32-bit lanes.
macro_rules! tile_of_halves {
    ($name:ident, $features:literal, $dot:expr, $finish:expr) => {
        #[target_feature(enable = $features)]
        fn $name<const GROUP: usize, const STEPS: usize, const ROWS: usize>(
            strip: Strip<'_>,
            tile: Tile<'_>,
        ) -> [[f32; STRIP]; ROWS] {
            let low = _mm256_set1_epi8(15);
            let mut output = [[0.0; STRIP]; ROWS];
            for half in 0..2 {
                let mut sums = [_mm256_setzero_ps(); ROWS];
                let weights = strip.lines.as_chunks::<STEPS>().0.iter().zip(strip.scales);
                let codes = tile.codes.as_chunks::<GROUP>().0.as_chunks::<ROWS>().0;
                let scales = tile.scales.as_chunks::<ROWS>().0;
                let inputs = codes.iter().zip(scales).zip(tile.offsets.as_chunks::<ROWS>().0);
                for ((lines, scales), ((codes, input_scales), offsets)) in weights.zip(inputs) {
                    let mut dots = [_mm256_setzero_si256(); ROWS];
                    // Eight-bit codes have a separate sum for their high halves.
                    let mut sixteens = [_mm256_setzero_si256(); ROWS];
                    for (step, line) in lines.iter().enumerate() {
                        let bytes = half_line(line, half);
                        let lows = _mm256_and_si256(bytes, low);
                        let highs = _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), low);
                        if 4 * STEPS == GROUP {
                            for row in 0..ROWS {
                                let inputs = _mm256_set1_epi32(four(&codes[row], step));
                                dots[row] = $dot(dots[row], lows, inputs);
                                sixteens[row] = $dot(sixteens[row], highs, inputs);
                            }
                            continue;
                        }
                        for row in 0..ROWS {
                            let (first, second) = (four(&codes[row], step), four(&codes[row], STEPS + step));
                            dots[row] = $dot(dots[row], lows, _mm256_set1_epi32(first));
                            dots[row] = $dot(dots[row], highs, _mm256_set1_epi32(second));
                        }
                    }
                    let scales = half_scales(scales, half);
                    for row in 0..ROWS {
                        let mut dot = _mm256_add_epi32($finish(dots[row]), _mm256_set1_epi32(offsets[row]));
                        if 4 * STEPS == GROUP {
                            dot = _mm256_add_epi32(dot, _mm256_slli_epi32::<4>($finish(sixteens[row])));
                        }
                        let dot = _mm256_mul_ps(_mm256_cvtepi32_ps(dot), _mm256_set1_ps(input_scales[row]));
                        sums[row] = _mm256_add_ps(sums[row], _mm256_mul_ps(dot, scales));
                    }
                }
                for (output, sums) in output.iter_mut().zip(sums) {
                    let output = &mut output[8 * half..][..8];
                    // SAFETY: eight f32 values have 32 bytes.
                    unsafe { _mm256_storeu_ps(output.as_mut_ptr(), sums) };
                }
            }
            output
        }
    };
}

tile_of_halves!(
    tile_256_vnni,
    "avx2,f16c,avxvnni",
    |sums, codes, inputs| _mm256_dpbusd_avx_epi32(sums, codes, inputs),
    |sums| sums
);
// Sums of product pairs in 16 bits do not overflow before they are widened. Four-bit codes in groups of 32, and the
// halves of eight-bit codes, have 8 pairs of at most 2 * 15 * 127. Three-bit codes in groups of 40 have 10 pairs of at
// most 2 * 7 * 127.
tile_of_halves!(
    tile_256,
    "avx2,f16c",
    |sums, codes, inputs| _mm256_add_epi16(sums, _mm256_maddubs_epi16(codes, inputs)),
    |sums| _mm256_madd_epi16(sums, _mm256_set1_epi16(1))
);
