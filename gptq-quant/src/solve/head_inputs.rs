//! [`HeadInputs`]: the Hessian of the head's inputs, summed while the model writes its own calibration text.
//!
//! The head is quantized first, with the float model's last hidden states as inputs. A model that writes text computes these
//! anyway, so `self_text.rs` sums them. A run on such text alone needs no float pass for the head.

use faer::Mat;

use super::{
    cholesky::square,
    hessian::{Hessian, TokenWeight},
    host_sums::HostSums,
};

/// Sums over some windows.
#[derive(Debug, Clone, PartialEq)]
pub struct HeadInputs {
    /// Number of windows.
    pub windows: usize,
    cols: usize,
    /// The lower triangle of `2 / tokens * X^T X`, row-major.
    lower: Vec<f32>,
}

impl HeadInputs {
    /// Sums the inputs `[tokens, cols]` of each window. All windows have the same length. The last token of a window is missing,
    /// because the model never runs it when it writes.
    pub fn of(windows: &[Vec<f32>], cols: usize, weight: TokenWeight) -> HeadInputs {
        let tokens = windows.first().map_or(0, Vec::len) / cols;
        let weights = weight.in_windows(tokens);
        let mut sums = HostSums::new(cols, weights, false);
        windows.iter().for_each(|inputs| sums.add(inputs, None));
        let products = sums.finish().products;
        let lower = (0..cols).flat_map(|i| (0..=i).map(move |j| (i, j))).map(|at| products[at] as f32).collect();
        HeadInputs { windows: windows.len(), cols, lower }
    }

    /// The sums as bytes for [`HeadInputs::from_bytes`], without the number of windows.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        self.lower.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    /// Reads [`HeadInputs::to_bytes`]. `None` if the bytes are not a triangle.
    pub(crate) fn from_bytes(windows: usize, bytes: &[u8]) -> Option<HeadInputs> {
        let (values, rest) = bytes.as_chunks::<4>();
        let cols = (0..).find(|cols| cols * (cols + 1) / 2 >= values.len())?;
        let is_triangle = rest.is_empty() && cols > 0 && cols * (cols + 1) / 2 == values.len();
        let lower = values.iter().map(|value| f32::from_le_bytes(*value)).collect();
        is_triangle.then_some(HeadInputs { windows, cols, lower })
    }

    /// The Hessian of all `parts`, summed in their order. `None` unless they cover exactly `windows` windows and have `cols`
    /// columns.
    pub fn joined(parts: &[HeadInputs], windows: usize, cols: usize) -> Option<Hessian> {
        let seen: usize = parts.iter().map(|part| part.windows).sum();
        if seen != windows || parts.iter().any(|part| part.cols != cols) {
            return None;
        }
        let share = |part: &HeadInputs| part.windows as f64 / windows as f64;
        let mean = |at: usize| parts.iter().map(|part| share(part) * f64::from(part.lower[at])).sum();
        let products: Mat<f64> = square(cols, |i, j| {
            let (row, col) = (i.max(j), i.min(j));
            mean(row * (row + 1) / 2 + col)
        });
        Some(Hessian { products, drift: None, stream_drift: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLS: usize = 5;

    fn window(i: usize) -> Vec<f32> {
        (0..7 * COLS).map(|at| ((at * 31 + i * 17) % 23) as f32 / 11.0 - 1.0).collect()
    }

    /// Two batches, stored as bytes in between, give the sums over all windows.
    #[test]
    fn parts_join_to_the_sums_over_all_windows() {
        let weight = TokenWeight { equal_norm: false, first_token: 0.5 };
        let windows: Vec<_> = (0..5).map(window).collect();
        let parts = [&windows[..3], &windows[3..]].map(|part| {
            let part = HeadInputs::of(part, COLS, weight);
            assert_eq!(HeadInputs::from_bytes(part.windows, &part.to_bytes()).as_ref(), Some(&part));
            part
        });
        let found = HeadInputs::joined(&parts, 5, COLS).unwrap().products;
        for (i, j) in [(0, 0), (3, 1), (1, 3), (4, 4)] {
            let rows = windows.iter().flat_map(|window| window.chunks(COLS).enumerate());
            let term = |(t, row): (usize, &[f32])| {
                // The first token has the extra weight of half a window.
                let factor = if t == 0 { 1.0 + 0.5 * 7.0 } else { 1.0 };
                factor * f64::from(row[i]) * f64::from(row[j])
            };
            let expected = 2.0 / 35.0 * rows.map(term).sum::<f64>();
            assert!((found[(i, j)] - expected).abs() < 1e-5, "({i}, {j}): {} is not {expected}", found[(i, j)]);
        }
        assert!(HeadInputs::joined(&parts, 6, COLS).is_none(), "one window is missing");
        assert!(HeadInputs::joined(&parts[..1], 3, COLS + 1).is_none());
    }

    #[test]
    fn bytes_of_another_length_are_rejected() {
        for len in [0, 4, 8, 13, 20] {
            let is_one = len == 4;
            assert_eq!(HeadInputs::from_bytes(1, &vec![0; len]).is_some(), is_one, "{len}");
        }
    }
}
