//! A matrix solved on the device that its inputs were computed on: what `gptq.rs` and `refine.rs` do in f64 on the CPU, in
//! f32 and for thousands of rows at a time. Factors of Hessians are computed in f64 on the CPU here too.

use std::{
    borrow::Cow,
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
    time::{Duration, Instant},
};

use faer::Mat;
use infer_core::ops::gpu::{BLOCK, GpuOps, Problem};
use ndarray::{Array2, ArrayView2, s};
use rayon::prelude::*;

use crate::{
    Result,
    calibrate::GpuHessian,
    gptq::{Method, Options, Prepared, Quantized, find_params},
};

/// Bytes of a piece of rows.
pub(crate) const PIECE_BYTES: usize = 128 << 20;

/// Whether the device can solve matrices `[_, cols]` like this.
pub(crate) fn suits(cols: usize, options: &Options) -> bool {
    let group_len = options.grid.group_len(cols);
    let whole = group_len.is_multiple_of(BLOCK) && cols.is_multiple_of(group_len);
    // A whole row as one group is more than the device's kernels look at together.
    whole && group_len <= 256 && options.static_groups && !options.gptq_py
}

/// Solves a matrix, so many bytes of rows at a time.
pub(crate) async fn solve(
    ops: &mut GpuOps,
    weights: ArrayView2<'_, f32>,
    products: &Mat<f64>,
    resident: &GpuHessian,
    options: &Options,
    factoring: &mut Duration,
    piece_bytes: usize,
) -> Result<Quantized> {
    let begun = Instant::now();
    let (rows, cols) = weights.dim();
    let prepared = match Prepared::new(weights, products, options) {
        Ok(prepared) => prepared,
        Err(rounded) => return Ok(*rounded),
    };
    let Prepared { dead, hessian: products, perm, factor, damp_percent, damp, importance } = prepared;
    *factoring = begun.elapsed();

    let group_len = options.grid.group_len(cols);
    let groups = cols / group_len;
    let shifted = resident.stream_drift.as_ref().filter(|_| options.stream_alpha != 0.0);
    let solver = ops.new_solver(Problem {
        perm: perm.iter().map(|&k| k as u32).collect(),
        factor: factor.as_slice().expect("row-major").par_iter().map(|&v| v as f32).collect(),
        hessian: &resident.products,
        diagonal: (0..cols).map(|i| (products[(i, i)] + damp) as f32).collect(),
        drift: resident.drift.as_ref().filter(|_| options.gptaq_alpha != 0.0),
        alpha: options.gptaq_alpha as f32,
        residual: shifted.map(|drift| (drift, options.stream_alpha as f32)),
        group_len,
        max_code: u32::from(options.grid.max_code()),
        coarse_bits: if options.values_in_f16 { options.grid.bits - u32::from(options.grid.sym) } else { 0 },
        sweeps: options.refine,
    })?;
    drop((factor, products));

    let mut codes = Vec::with_capacity(rows * cols);
    let (mut scales, mut zeros) = (Vec::with_capacity(rows * groups), Vec::with_capacity(rows * groups));
    let mut loss = 0.0;
    let each = (piece_bytes / (4 * cols)).max(1);
    let piece_at = |start: usize| {
        let piece = weights.slice_move(s![start..rows.min(start + each), ..]);
        match piece.to_slice() {
            Some(values) if !dead.contains(&true) => Cow::Borrowed(values),
            _ => piece.indexed_iter().map(|((_, col), &w)| if dead[col] { 0.0 } else { w }).collect(),
        }
    };
    let search = |piece: &[f32]| -> Vec<f32> {
        let of_row = |row: &[f32]| {
            let row: Vec<f64> = row.iter().map(|&w| f64::from(w)).collect();
            let importance = &importance;
            (0..groups).flat_map(move |group| {
                let range = group * group_len..(group + 1) * group_len;
                let params = find_params(options, &row[range.clone()], &importance[range]);
                [params.scale as f32, params.zero as f32]
            })
        };
        piece.par_chunks(cols).flat_map_iter(of_row).collect()
    };
    let mut next = None;
    for start in (0..rows).step_by(each) {
        let (piece, grid) = match next.take() {
            Some(known) => known,
            None => {
                let mut piece = piece_at(start);
                if shifted.is_some() {
                    let shifts = ops.shifts(&solver, start, piece.len() / cols).await?;
                    piece.to_mut().par_iter_mut().zip(shifts).for_each(|(weight, shift)| *weight += shift);
                }
                let grid = search(&piece);
                (piece, grid)
            }
        };
        let mut solving = pin!(ops.solve_rows(&solver, &piece, &grid));
        // The device begins, and meanwhile the scales of the piece after this one are searched.
        let begun = poll_fn(|context| Poll::Ready(solving.as_mut().poll(context))).await;
        if shifted.is_none() && start + each < rows {
            let piece = piece_at(start + each);
            let grid = search(&piece);
            next = Some((piece, grid));
        }
        let solution = match begun {
            Poll::Ready(solution) => solution,
            Poll::Pending => solving.await,
        }?;
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
    Ok(quantized)
}

#[cfg(test)]
mod tests {
    use infer_core::{Gpu, KvDtype, OpenOptions, block_on};

    use super::*;
    use crate::{Calibrate, Grid, Hessian, cholesky::square};

    /// Rows have nothing to do with each other, so that it does not matter which of them are solved together.
    #[test]
    fn pieces_are_what_they_are_in_the_whole() {
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
                // A solver damps the Hessian where it lies.
                let hessian = Hessian { products: products.clone(), drift: None, stream_drift: Some(shift.clone()) };
                let resident = ops.place(&hessian).unwrap();
                let (mut time, bytes) = (Duration::ZERO, piece_rows * cols * 4);
                let weights = weights.view();
                let of_pieces = solve(&mut ops, weights, &products, &resident, &options, &mut time, bytes);
                block_on(of_pieces).unwrap()
            };
            let whole = in_pieces(rows);
            for piece_rows in [64, 100, 1] {
                let pieces = in_pieces(piece_rows);
                // Sums may be taken in another order where there are fewer rows.
                let differing = pieces.codes.iter().zip(&whole.codes).filter(|(a, b)| a != b).count();
                assert!(differing * 500 < rows * cols, "{differing} codes differ in pieces of {piece_rows}");
                assert!((pieces.loss / whole.loss - 1.0).abs() < 1e-2, "{} and {}", pieces.loss, whole.loss);
                assert_eq!(pieces.scales.dim(), whole.scales.dim());
            }
        }
    }
}
