//! From GPTQ's grid to that of a group format, without changing a value.
//!
//! GPTQ: `(q - zero) * s`. The format: `(n - max_int) * S`. The two are equal for `n = q - zero + max_int, S = s`, and
//! also for the mirror image `n = max_int + zero - q, S = -s`. Symmetric 4-bit codes have zero 8 and `max_int` is 7: the
//! mirror image `n = 15 - q` holds all sixteen of them.

use half::f16;

use super::GptqMatrix;
use crate::{Error, QuantFormat, QuantizedMatrix, Result};

impl GptqMatrix {
    /// The same values in a group format, exactly (but for the sign of zero); an error that says why where that cannot
    /// be.
    pub fn to_format(&self, format: &'static QuantFormat, module: &str) -> Result<QuantizedMatrix> {
        let fail = |reason: String| Error::NotLossless { name: module.into(), reason };
        let Some(grid) = format.group() else {
            return Err(fail(format!("`{}` has no codes", format.name)));
        };
        let (max_int, largest) = (i16::from(grid.max_int()), (1i16 << grid.bits) - 1);
        let mut codes = vec![0u8; self.codes.len()];
        let mut scales = Vec::with_capacity(self.rows * grid.groups(self.cols));
        for (row, (q, n)) in self.codes.chunks_exact(self.cols).zip(codes.chunks_exact_mut(self.cols)).enumerate() {
            let blocks = q.chunks(grid.group_size).zip(n.chunks_mut(grid.group_size));
            for ((q, n), g_idx) in blocks.zip(self.g_idx.chunks(grid.group_size)) {
                let group = g_idx[0];
                if g_idx.iter().any(|&g| g != group) {
                    return Err(fail(format!(
                        "its scales do not belong to whole runs of {} inputs (a smaller or odd group size, or act-order \
                         without static groups)",
                        grid.group_size
                    )));
                }
                let at = row * self.groups() + group as usize;
                let (zero, scale) = (i16::from(self.zeros[at]), self.scales[at]);
                let direct = |q: u8| i16::from(q) - zero + max_int;
                let mirrored = |q: u8| max_int + zero - i16::from(q);
                let fits = |map: &dyn Fn(u8) -> i16| q.iter().all(|&q| (0..=largest).contains(&map(q)));
                let kept: (&dyn Fn(u8) -> i16, f16) = (&direct, scale);
                let turned: (&dyn Fn(u8) -> i16, f16) = (&mirrored, -scale);
                // The mirror image first where only it holds all codes, so that equal scales give equal codes.
                let order = if zero > max_int { [turned, kept] } else { [kept, turned] };
                let Some((map, scale)) = order.into_iter().find(|(map, _)| fits(map)) else {
                    return Err(fail(format!(
                        "row {row}, group {group} has zero {zero}, which `{}` cannot hold",
                        format.name
                    )));
                };
                for (n, &q) in n.iter_mut().zip(q) {
                    *n = map(q) as u8;
                }
                scales.push(scale);
            }
        }
        Ok(format.pack(self.rows, self.cols, &codes, scales))
    }
}
