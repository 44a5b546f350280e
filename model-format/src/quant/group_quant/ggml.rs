//! The same values in ggml's Q4_0 blocks, for CPU back ends that multiply those.
//!
//! Q4_0 is `(code - 8) * d` with blocks of 32 along K: an f16 `d`, then 16 bytes whose low nibbles are elements 0..16 and
//! whose high nibbles are elements 16..32. With `code' = 15 - code` and `d = -scale` the values are equal, all 16 codes and
//! either sign of the scale included.

use super::super::QuantizedMatrix;

impl QuantizedMatrix {
    /// The matrix as Q4_0 blocks, row-major; `None` where its groups are not 32 whole weights of 4 bits, or a scale is no
    /// f16 number.
    pub fn to_ggml_q4_0(&self) -> Option<Vec<u8>> {
        let group = self.group();
        if group.bits != 4 || group.group_size != 32 || !self.cols.is_multiple_of(32) {
            return None;
        }
        let scales = self.q_scale.to_f16()?;
        let codes = self.codes();
        let mut bytes = Vec::with_capacity(codes.len() / 32 * 18);
        for (codes, scale) in codes.chunks_exact(32).zip(scales) {
            bytes.extend((-scale).to_le_bytes());
            bytes.extend((0..16).map(|i| (15 - codes[i]) | (15 - codes[i + 16]) << 4));
        }
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use half::f16;

    use crate::{QuantFormat, quant::group_quant::Scales};

    #[test]
    fn q4_0_blocks_hold_the_same_values() {
        let format = QuantFormat::by_name("q4f16_1").unwrap();
        let codes: Vec<u8> = (0..64).map(|i| (i * 7 % 16) as u8).collect();
        let matrix = format.pack(1, 64, &codes, Scales::f16(&[f16::from_f32(0.25), f16::from_f32(-3.0)]));
        let blocks = matrix.to_ggml_q4_0().unwrap();
        let mut values = Vec::new();
        for block in blocks.chunks_exact(18) {
            let d = f16::from_le_bytes([block[0], block[1]]).to_f32();
            values.extend(block[2..].iter().map(|b| (f32::from(b & 15) - 8.0) * d));
            values.extend(block[2..].iter().map(|b| (f32::from(b >> 4) - 8.0) * d));
        }
        assert_eq!(values, matrix.dequantize());
    }
}
