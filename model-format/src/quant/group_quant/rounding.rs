//! Arithmetic in a narrow number type, done in f32 and rounded after every step.
//!
//! A sum or quotient of f16 or bf16 numbers, computed in f32 and rounded once more, is the correctly rounded one: 24 bits
//! are at least `2 p + 2` for `p` of 11 and 8. Plain integer arithmetic on the bits keeps the loops free of branches and
//! calls, so that they become vector code.

/// Rounding f32 to the number type that a format computes in, halves to even. The result is an f32 that the type holds.
pub(super) trait Rounding {
    /// Any value, subnormals and what becomes infinite included.
    fn cast(x: f32) -> f32;
    /// A value whose size is between the type's smallest and largest normal number, or one to which a number of ordinary
    /// size will be added.
    fn near(x: f32) -> f32;
}

pub(super) struct F16;
pub(super) struct BF16;
pub(super) struct F32;

impl Rounding for F16 {
    #[inline(always)]
    fn cast(x: f32) -> f32 {
        let size = x.abs();
        // 0.5 has the last place of f16's subnormals, 2^-24.
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

    /// Every f16 number, its neighbours in f32, and the halfway points between them.
    #[test]
    fn casts_are_those_of_half() {
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
