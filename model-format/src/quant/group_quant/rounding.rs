//! Emulates arithmetic in f16 and bf16: computes in f32 and rounds after each step.
//!
//! The sum or quotient of two f16 or bf16 numbers, computed in f32 and then rounded, is correctly rounded: f32's 24
//! bits are at least `2 p + 2` for the precisions `p` of 11 and 8. Rounding uses integer arithmetic on the bits,
//! without branches and calls, so that compilers vectorize the loops.

/// Rounds f32 to a format's number type, to nearest even. The result is an f32 that is exact in this type.
pub(super) trait Rounding {
    /// Rounds any value, including subnormals, overflow and NaN.
    fn cast(x: f32) -> f32;
    /// Rounds faster, for values in the type's normal range. Also for smaller values if a number of ordinary size is
    /// added to the result.
    fn near(x: f32) -> f32;
}

pub(super) struct F16;
pub(super) struct BF16;
pub(super) struct F32;

impl Rounding for F16 {
    #[inline(always)]
    fn cast(x: f32) -> f32 {
        let size = x.abs();
        // In f32, the last place of 0.5 is 2^-24, as of f16's subnormals. Adding 0.5 therefore rounds to a subnormal.
        let subnormal = (size + 0.5) - 0.5;
        let size = if size < 6.103_515_6e-5 { subnormal } else { F16::near(size) };
        let size = if size > 65504.0 { f32::INFINITY } else { size };
        if x.is_nan() { x } else { size.copysign(x) }
    }

    #[inline(always)]
    fn near(x: f32) -> f32 {
        let bits = x.to_bits();
        f32::from_bits(bits.wrapping_add(0xfff + (bits >> 13 & 1)) & !0x1fff)
    }
}

impl Rounding for BF16 {
    #[inline(always)]
    fn cast(x: f32) -> f32 {
        if x.is_nan() { x } else { BF16::near(x) }
    }

    #[inline(always)]
    fn near(x: f32) -> f32 {
        let bits = x.to_bits();
        f32::from_bits(bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & !0xffff)
    }
}

impl Rounding for F32 {
    #[inline(always)]
    fn cast(x: f32) -> f32 {
        x
    }

    #[inline(always)]
    fn near(x: f32) -> f32 {
        x
    }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;

    /// All upper halves of an f32, with lower halves that include f16's neighbors and halfway points.
    #[test]
    fn casts_equal_the_half_crate() {
        let mut seen = 0u32;
        for high in 0..=u16::MAX {
            for low in [0u32, 1, 0x0fff, 0x1000, 0x1001, 0x2000, 0x3000, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let x = f32::from_bits(u32::from(high) << 16 | low);
                let (a, b) = (F16::cast(x), f16::from_f32(x).to_f32());
                assert!(a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()), "f16 of {x:e}: {a:e}, {b:e}");
                let (a, b) = (BF16::cast(x), bf16::from_f32(x).to_f32());
                assert!(a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()), "bf16 of {x:e}: {a:e}, {b:e}");
                seen += 1;
            }
        }
        assert_eq!(seen, 65536 * 11);
    }
}
