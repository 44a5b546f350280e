//! GPTQ and refinement on a GPU, in f32 and for thousands of rows at a time. The host factors the Hessian in f64, as for
//! `solve/gptq.rs`, which does all of it in f64.

use std::{
    borrow::Cow,
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
    time::Instant,
};

use faer::Mat;
use infer_core::ops::gpu::GpuOps;
use ndarray::{Array2, ArrayView2, s};
use rayon::prelude::*;
use webgpu_kernels::{
    Matrix,
    gptq::{BLOCK, Problem, Solver},
};

use crate::{
    Result,
    solve::{
        cholesky::filled,
        dialect::Dialect,
        nearest::find_params,
        options::Options,
        prepared::Prepared,
        quantized::{Method, Quantized, Solved},
    },
};

/// Bytes of weights per piece of rows.
pub const PIECE_BYTES: usize = 128 << 20;

/// A [`Hessian`](crate::Hessian) on a GPU, in f32.
pub struct GpuHessian {
    pub(super) products: Matrix,
    pub(super) drift: Option<Matrix>,
    pub(super) stream_drift: Option<Matrix>,
}

impl GpuHessian {
    /// Reads [`Hessian::drift`](crate::Hessian::drift).
    pub async fn drift(&self, ops: &mut GpuOps) -> infer_core::Result<Option<Mat<f64>>> {
        read(ops, self.drift.as_ref()).await
    }

    /// Reads [`Hessian::stream_drift`](crate::Hessian::stream_drift).
    pub async fn stream_drift(&self, ops: &mut GpuOps) -> infer_core::Result<Option<Mat<f64>>> {
        read(ops, self.stream_drift.as_ref()).await
    }
}

/// Reads a matrix from the GPU.
async fn read(ops: &mut GpuOps, matrix: Option<&Matrix>) -> infer_core::Result<Option<Mat<f64>>> {
    let Some(matrix) = matrix else { return Ok(None) };
    let (values, cols) = (matrix.read(ops.recorder()).await?, matrix.cols);
    Ok(Some(filled(matrix.rows, cols, |i, j| f64::from(values[i * cols + j]))))
}

/// True if the kernels can solve a matrix `[_, cols]`: groups of whole blocks, at most 256 columns each, with static scales.
pub(super) fn can_solve(cols: usize, options: &Options) -> bool {
    let group_len = options.grid.group_len(cols);
    let whole = group_len.is_multiple_of(BLOCK) && cols.is_multiple_of(group_len);
    whole && group_len <= 256 && options.static_groups
}

/// Solves a matrix in pieces of `piece_bytes` bytes of rows. `products` is the Hessian, which `on_device` holds too.
pub(super) async fn solve(
    ops: &mut GpuOps,
    weights: ArrayView2<'_, f32>,
    products: &Mat<f64>,
    on_device: &GpuHessian,
    options: &Options,
    piece_bytes: usize,
) -> Result<Solved> {
    let begun = Instant::now();
    let (rows, cols) = weights.dim();
    let prepared = match Prepared::new(weights, products, options, Dialect::Own) {
        Ok(prepared) => prepared,
        Err(rounded) => return Ok(Solved { quantized: *rounded, factoring: Default::default() }),
    };
    let Prepared { dead, hessian: products, perm, factor, damp_percent, damp, importance } = prepared;
    let factoring = begun.elapsed();

    let group_len = options.grid.group_len(cols);
    let groups = cols / group_len;
    let stream_drift = on_device.stream_drift.as_ref().filter(|_| options.stream_alpha != 0.0);
    let problem = Problem {
        perm: perm.iter().map(|&k| k as u32).collect(),
        factor: factor.as_slice().expect("row-major").par_iter().map(|&v| v as f32).collect(),
        hessian: &on_device.products,
        diagonal: (0..cols).map(|i| (products[(i, i)] + damp) as f32).collect(),
        drift: on_device.drift.as_ref().filter(|_| options.gptaq_alpha != 0.0),
        alpha: options.gptaq_alpha as f32,
        residual: stream_drift.map(|drift| (drift, options.stream_alpha as f32)),
        group_len,
        max_code: u32::from(options.grid.max_code()),
        coarse_bits: if options.values_in_f16 { options.grid.bits - u32::from(options.grid.sym) } else { 0 },
        sweeps: options.refine,
    };
    let solver = Solver::new(ops.recorder(), problem).map_err(infer_core::Error::from)?;
    drop((factor, products));

    let rows_at_once = (piece_bytes / (4 * cols)).max(1);
    let piece_at = |start: usize| {
        let piece = weights.slice_move(s![start..rows.min(start + rows_at_once), ..]);
        match piece.to_slice() {
            Some(values) if !dead.contains(&true) => Cow::Borrowed(values),
            _ => piece.indexed_iter().map(|((_, col), &w)| if dead[col] { 0.0 } else { w }).collect(),
        }
    };
    // Scale and zero of every group `[rows, groups, 2]`.
    let search = |piece: &[f32]| -> Vec<f32> {
        let of_row = |row: &[f32]| {
            let row: Vec<f64> = row.iter().map(|&w| f64::from(w)).collect();
            let importance = &importance;
            (0..groups).flat_map(move |group| {
                let range = group * group_len..(group + 1) * group_len;
                let params = find_params(options, Dialect::Own, &row[range.clone()], &importance[range]);
                [params.scale as f32, params.zero as f32]
            })
        };
        piece.par_chunks(cols).flat_map_iter(of_row).collect()
    };
    let mut codes = Vec::with_capacity(rows * cols);
    let (mut scales, mut zeros) = (Vec::with_capacity(rows * groups), Vec::with_capacity(rows * groups));
    let mut loss = 0.0;
    let mut searched = None;
    for start in (0..rows).step_by(rows_at_once) {
        let (piece, grid) = match searched.take() {
            Some(piece_and_grid) => piece_and_grid,
            None => {
                let mut piece = piece_at(start);
                if stream_drift.is_some() {
                    let shifts = solver.shifts(ops.recorder(), start, piece.len() / cols).await;
                    let shifts = shifts.map_err(infer_core::Error::from)?;
                    piece.to_mut().par_iter_mut().zip(shifts).for_each(|(weight, shift)| *weight += shift);
                }
                let grid = search(&piece);
                (piece, grid)
            }
        };
        let mut solving = pin!(solver.solve(ops.recorder(), &piece, &grid));
        // The first poll submits the piece. The host searches the next piece's scales while the GPU works.
        let first_poll = poll_fn(|context| Poll::Ready(solving.as_mut().poll(context))).await;
        if stream_drift.is_none() && start + rows_at_once < rows {
            let piece = piece_at(start + rows_at_once);
            let grid = search(&piece);
            searched = Some((piece, grid));
        }
        let solution = match first_poll {
            Poll::Ready(solution) => solution,
            Poll::Pending => solving.await,
        };
        let solution = solution.map_err(infer_core::Error::from)?;
        codes.par_extend(solution.codes.par_iter().map(|&code| code as u8));
        scales.par_extend(solution.grid.par_iter().step_by(2));
        zeros.par_extend(solution.grid.par_iter().skip(1).step_by(2).map(|&zero| zero as u8));
        loss += solution.losses.iter().map(|&loss| f64::from(loss)).sum::<f64>();
    }
    let array = |len: usize, values: Vec<u8>| Array2::from_shape_vec((rows, len), values).expect("all rows");
    let mut quantized = Quantized {
        grid: options.grid,
        codes: array(cols, codes),
        scales: Array2::from_shape_vec((rows, groups), scales).expect("all rows"),
        zeros: array(groups, zeros),
        g_idx: (0..cols).map(|k| (k / group_len) as u32).collect(),
        loss,
        method: Method::Gptq { damp_percent },
    };
    quantized.round_scales(options);
    Ok(Solved { quantized, factoring })
}

#[cfg(test)]
mod tests {
    use infer_core::{Gpu, KvDtype, OpenOptions, block_on};

    use super::*;
    use crate::{Calibrate, Grid, Hessian, solve::cholesky::square};

    /// Rows are independent, so solving them in other pieces gives nearly the same codes.
    #[test]
    fn pieces_give_the_codes_of_the_whole_matrix() {
        let gpu = match block_on(Gpu::open(&Default::default(), OpenOptions::default())) {
            Ok(gpu) => gpu,
            Err(error) => {
                assert!(std::env::var_os("REQUIRE_GPU").is_none(), "no GPU: {error}");
                return eprintln!("skipped: {error}");
            }
        };
        let (rows, cols) = (200, 96);
        let weights =
            Array2::from_shape_fn((rows, cols), |(n, k)| ((n * 7919 + k * 104_729) % 1009) as f32 / 504.0 - 1.0);
        let products = square(cols, |i, j| if i == j { 2.0 } else { 1.0 / (1.0 + i.abs_diff(j) as f64) });
        let shift = Mat::from_fn(rows, cols, |i, j| ((i * 3 + j) % 7) as f64 * 0.01);
        let options = Options { refine: 2, ..Options::new(Grid { bits: 4, group_size: Some(32), sym: true }) };
        let mut ops = GpuOps::new(gpu, KvDtype::F32);
        for stream_alpha in [0.0, 0.5] {
            let options = Options { stream_alpha, ..options };
            let mut in_pieces = |piece_rows: usize| {
                // A new upload for every run: a solver damps the Hessian in place.
                let hessian = Hessian { products: products.clone(), drift: None, stream_drift: Some(shift.clone()) };
                let on_device = ops.place(&hessian).unwrap();
                let bytes = piece_rows * cols * 4;
                let solving = solve(&mut ops, weights.view(), &products, &on_device, &options, bytes);
                block_on(solving).unwrap().quantized
            };
            let whole = in_pieces(rows);
            for piece_rows in [64, 100, 1] {
                let pieces = in_pieces(piece_rows);
                // Kernels for fewer rows may sum in another order.
                let differing = pieces.codes.iter().zip(&whole.codes).filter(|(a, b)| a != b).count();
                assert!(differing * 500 < rows * cols, "{differing} codes differ in pieces of {piece_rows}");
                assert!((pieces.loss / whole.loss - 1.0).abs() < 1e-2, "{} and {}", pieces.loss, whole.loss);
                assert_eq!(pieces.scales.dim(), whole.scales.dim());
            }
        }
    }
}
