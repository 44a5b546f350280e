//! Converts a GPTQ matrix to a group format: exactly if possible, else to the nearest values.
//!
//! GPTQ's values are `(q - zero) * s`, the format's `(n - max_int) * S`. They are equal for `n = q - zero + max_int, S
//! = s` (direct) and for `n = max_int + zero - q, S = -s` (mirrored). Symmetric 4-bit codes have zero 8, and `max_int`
//! is 7. Only the mirrored form `n = 15 - q` has all sixteen codes.

use super::GptqMatrix;
use crate::{
    Error, QuantFormat, QuantizedMatrix, Result,
    quant::group_quant::{GroupQuant, Scales, narrow},
};

/// The error of a conversion to a grid that cannot represent all values exactly.
#[derive(Debug, Clone, PartialEq)]
pub struct Refit {
    /// The module.
    pub name: String,
    /// Why the first changed group cannot be represented exactly.
    pub reason: String,
    /// Number of changed groups of the format.
    pub groups: usize,
    /// Number of all groups of the format.
    pub of_groups: usize,
    /// Largest absolute change of a value.
    pub max_error: f32,
    /// Root mean square of the changes, relative to the root mean square of the values.
    pub relative_error: f32,
}

impl GptqMatrix {
    /// Converts to a group format with exactly the same values, except for the sign of zero.
    ///
    /// # Errors
    ///
    /// [`Error::NotLossless`] if the format cannot represent a value.
    pub fn to_format(&self, format: &'static QuantFormat, module: &str) -> Result<QuantizedMatrix> {
        self.convert(format, module, None)
    }

    /// Converts to a group format. Keeps each group exactly if possible; else uses the nearest values. Also returns the
    /// error of the conversion, or `None` if all values are exact.
    ///
    /// # Panics
    ///
    /// If `format` has no codes.
    pub fn refit(&self, format: &'static QuantFormat, module: &str) -> (QuantizedMatrix, Option<Refit>) {
        assert!(format.group().is_some(), "refit: `{}` has no codes", format.name);
        let mut first = None;
        let matrix = self.convert(format, module, Some(&mut first)).expect("a refit does not fail");
        let Some((reason, groups)) = first else { return (matrix, None) };
        let (mut max, mut changes, mut size) = (0f32, 0f64, 0f64);
        for (found, expected) in matrix.dequantize().into_iter().zip(self.dequantize()) {
            max = max.max((found - expected).abs());
            changes += f64::from(found - expected).powi(2);
            size += f64::from(expected).powi(2);
        }
        let relative_error = if size > 0.0 { (changes / size).sqrt() as f32 } else { 0.0 };
        let of_groups = matrix.q_scale.len();
        (matrix, Some(Refit { name: module.into(), reason, groups, of_groups, max_error: max, relative_error }))
    }

    /// Converts group by group. A group that cannot be represented exactly is an error. With `refitted`, it gets the
    /// nearest values instead; `refitted` receives the reason of the first such group and their number.
    fn convert(
        &self,
        format: &'static QuantFormat,
        module: &str,
        mut refitted: Option<&mut Option<(String, usize)>>,
    ) -> Result<QuantizedMatrix> {
        let fail = |reason: String| Error::NotLossless { name: module.into(), reason };
        let Some(grid) = format.group() else {
            return Err(fail(format!("`{}` has no codes", format.name)));
        };
        let mut codes = vec![0u8; self.codes.len()];
        let mut scales =
            Scales { dtype: grid.scale_dtype(), bits: Vec::with_capacity(self.rows * grid.groups(self.cols)) };
        let mut values = Vec::with_capacity(grid.group_size);
        for (row, (q, n)) in self.codes.chunks_exact(self.cols).zip(codes.chunks_exact_mut(self.cols)).enumerate() {
            let blocks = q.chunks(grid.group_size).zip(n.chunks_mut(grid.group_size));
            for ((q, n), g_idx) in blocks.zip(self.g_idx.chunks(grid.group_size)) {
                let scale = match (self.exact_codes(format, grid, row, q, g_idx, n), &mut refitted) {
                    (Ok(scale), _) => scale,
                    (Err(reason), None) => return Err(fail(reason)),
                    (Err(reason), Some(refitted)) => {
                        refitted.get_or_insert((reason, 0)).1 += 1;
                        values.clear();
                        values.extend(q.iter().zip(g_idx).map(|(&q, &g)| self.value(row, q, g)));
                        nearest_codes(grid, &values, n)
                    }
                };
                scales.bits.push(narrow(scales.dtype, scale).1);
            }
        }
        Ok(format.pack(self.rows, self.cols, &codes, scales))
    }

    /// Writes the codes with exactly the same values as `q` to `n` and returns their scale. The error is the reason why
    /// there are no such codes.
    fn exact_codes(
        &self,
        format: &QuantFormat,
        grid: GroupQuant,
        row: usize,
        q: &[u8],
        g_idx: &[u32],
        n: &mut [u8],
    ) -> Result<f32, String> {
        let group = g_idx[0];
        if g_idx.iter().any(|&g| g != group) {
            return Err(format!(
                "its groups are not multiples of {} consecutive inputs (a smaller or odd group size, or act-order without \
                 static groups)",
                grid.group_size
            ));
        }
        let at = row * self.groups() + group as usize;
        let (zero, scale) = (i16::from(self.zeros[at]), self.scales[at]);
        if narrow(grid.scale_dtype(), scale).0 != scale {
            let (name, dtype) = (format.name, grid.scale_dtype());
            return Err(format!("row {row}, group {group} has scale {scale:e}, which `{name}` cannot hold in {dtype}"));
        }
        let (max_int, largest) = (i16::from(grid.max_int()), i16::from(grid.largest_code()));
        let direct = |q: u8| i16::from(q) - zero + max_int;
        let mirrored = |q: u8| max_int + zero - i16::from(q);
        let fits = |map: &dyn Fn(u8) -> i16| q.iter().all(|&q| (0..=largest).contains(&map(q)));
        let direct: (&dyn Fn(u8) -> i16, f32) = (&direct, scale);
        let mirrored: (&dyn Fn(u8) -> i16, f32) = (&mirrored, -scale);
        // Try the mirrored form first if only it can have all codes (zero 8), so that all groups get the same form.
        let order = if zero > max_int { [mirrored, direct] } else { [direct, mirrored] };
        let Some((map, scale)) = order.into_iter().find(|(map, _)| fits(map)) else {
            return Err(format!("row {row}, group {group} has zero {zero}, which `{}` cannot hold", format.name));
        };
        for (n, &q) in n.iter_mut().zip(q) {
            *n = map(q) as u8;
        }
        Ok(scale)
    }
}

/// Writes the codes nearest to `values` and returns their scale, which is the one with the smallest squared error among
/// many candidates. The grid has one step more above zero than below, so both signs of the scale are tried.
fn nearest_codes(grid: GroupQuant, values: &[f32], codes: &mut [u8]) -> f32 {
    /// The grid's range is tried from the largest value down to this share of it. Values beyond the range are clipped.
    const SMALLEST: f32 = 0.7;
    const STEPS: u8 = 30;
    let extreme = values.iter().fold(0f32, |max, &v| if v.abs() > max.abs() { v } else { max });
    let (below, above) = (f32::from(grid.max_int()), f32::from(grid.largest_code() - grid.max_int()));
    let code = |value: f32, scale: f32| {
        // With a scale of zero the quotient may be NaN, which `max` turns into 0.
        (value / scale + below).round_ties_even().max(0.0).min(below + above) as u8
    };
    let mut best = (f64::INFINITY, 0f32);
    for side in [above, -below] {
        for step in 0..=STEPS {
            let share = SMALLEST + (1.0 - SMALLEST) * f32::from(step) / f32::from(STEPS);
            let scale = narrow(grid.scale_dtype(), extreme * share / side).0;
            let error: f64 = values.iter().map(|&v| f64::from(v - grid.value(code(v, scale), scale)).powi(2)).sum();
            if error < best.0 {
                best = (error, scale);
            }
        }
    }
    for (n, &value) in codes.iter_mut().zip(values) {
        *n = code(value, best.1);
    }
    best.1
}
