//! A matrix solved on the device that its inputs were computed on: what `gptq.rs` and `refine.rs` do in f64 on the CPU, in
//! f32 and for thousands of rows at a time. Factors of Hessians are computed in f64 on the CPU here too.

use std::time::{Duration, Instant};

use faer::Mat;
use infer_core::ops::{
    Ops,
    gpu::{BLOCK, GpuOps, Problem},
};
use model_format::{Role, Weight};
use ndarray::{Array2, ArrayView2};
use rayon::prelude::*;

use crate::{
    Hessian, Result,
    gptq::{Method, Options, Prepared, Quantized, find_params},
};

/// Bytes of a piece of rows.
const PIECE_BYTES: usize = 64 << 20;

/// Whether the device can solve matrices `[_, cols]` like this.
pub(crate) fn suits(cols: usize, options: &Options) -> bool {
    let group_len = options.grid.group_len(cols);
    let whole = group_len.is_multiple_of(BLOCK) && cols.is_multiple_of(group_len);
    // A whole row as one group is more than the device's kernels look at together.
    whole && group_len <= 256 && options.static_groups && !options.gptq_py
}

/// Solves a matrix.
pub(crate) async fn solve(
    ops: &mut GpuOps,
    weights: ArrayView2<'_, f32>,
    hessian: &Hessian,
    options: &Options,
    factoring: &mut Duration,
) -> Result<Quantized> {
    let begun = Instant::now();
    let (rows, cols) = weights.dim();
    let prepared = match Prepared::new(weights, &hessian.products, options) {
        Ok(prepared) => prepared,
        Err(rounded) => return Ok(*rounded),
    };
    let Prepared { dead, hessian: products, perm, factor, damp_percent, damp, importance } = prepared;
    let factor = factor.mapv(|v| v as f32);
    let drift = hessian.drift.as_ref().filter(|_| options.gptaq_alpha != 0.0);
    let correction = match drift {
        Some(drift) => Some(correction(ops, drift, &perm, &factor, options.gptaq_alpha).await?),
        None => None,
    };
    *factoring = begun.elapsed();

    let group_len = options.grid.group_len(cols);
    let groups = cols / group_len;
    let values = |at: &(dyn Fn(usize, usize) -> f64 + Sync)| -> Vec<f32> {
        (0..cols).into_par_iter().flat_map_iter(|i| (0..cols).map(move |j| at(i, j) as f32)).collect()
    };
    let solver = ops.new_solver(Problem {
        perm: &perm.iter().map(|&k| k as u32).collect::<Vec<_>>(),
        factor: factor.as_slice().expect("row-major"),
        correction: correction.as_deref(),
        hessian: values(&|i, j| products[(j, i)] + if i == j { damp } else { 0.0 }),
        drift: drift.filter(|_| options.refine > 0).map(|drift| values(&|i, j| drift[(j, i)] * options.gptaq_alpha)),
        group_len,
        max_code: u32::from(options.grid.max_code()),
        coarse_bits: if options.values_in_f16 { options.grid.bits - u32::from(options.grid.sym) } else { 0 },
        sweeps: options.refine,
    })?;

    let mut codes = Vec::with_capacity(rows * cols);
    let (mut scales, mut zeros) = (Vec::with_capacity(rows * groups), Vec::with_capacity(rows * groups));
    let mut loss = 0.0;
    let each = (PIECE_BYTES / (4 * cols)).max(1);
    for start in (0..rows).step_by(each) {
        let piece: Vec<f32> = (start..rows.min(start + each))
            .flat_map(|row| weights.row(row).into_iter().zip(&dead).map(|(&w, &dead)| if dead { 0.0 } else { w }))
            .collect();
        let grid: Vec<f32> = piece
            .par_chunks(cols)
            .flat_map_iter(|row| {
                let row: Vec<f64> = row.iter().map(|&w| f64::from(w)).collect();
                let importance = &importance;
                (0..groups).flat_map(move |group| {
                    let range = group * group_len..(group + 1) * group_len;
                    let params = find_params(options, &row[range.clone()], &importance[range]);
                    [params.scale as f32, params.zero as f32]
                })
            })
            .collect();
        let solution = ops.solve_rows(&solver, &piece, &grid).await?;
        codes.extend(solution.codes.iter().map(|&code| code as u8));
        scales.extend(solution.grid.iter().step_by(2));
        zeros.extend(solution.grid.iter().skip(1).step_by(2).map(|&zero| zero as u8));
        loss += solution.losses.iter().map(|&loss| f64::from(loss)).sum::<f64>();
    }
    let array = |len: usize, values: Vec<u8>| Array2::from_shape_vec((rows, len), values).expect("all rows");
    Ok(Quantized {
        grid: options.grid,
        codes: array(cols, codes),
        scales: Array2::from_shape_vec((rows, groups), scales).expect("all rows"),
        zeros: array(groups, zeros),
        g_idx: (0..cols).map(|k| (k / group_len) as u32).collect(),
        loss,
        method: Method::Gptq { damp_percent },
    })
}

/// As in `gptq.rs`: `alpha * triu(D U^T, 1) U`, `[cols, cols]`.
async fn correction(
    ops: &mut GpuOps,
    drift: &Mat<f64>,
    perm: &[usize],
    factor: &Array2<f32>,
    alpha: f64,
) -> Result<Vec<f32>> {
    let cols = perm.len();
    let drift: Vec<f32> = (0..cols)
        .into_par_iter()
        .flat_map_iter(|i| (0..cols).map(move |j| (drift[(perm[i], perm[j])] * alpha) as f32))
        .collect();
    let mut product = times(ops, cols, &drift, factor.iter().copied().collect()).await?;
    product.par_chunks_mut(cols).enumerate().for_each(|(i, row)| row[..=i].fill(0.0));
    times(ops, cols, &product, factor.t().iter().copied().collect()).await
}

/// `a b^T`, all `[cols, cols]`.
async fn times(ops: &mut GpuOps, cols: usize, a: &[f32], b: Vec<f32>) -> Result<Vec<f32>> {
    let b = ops.upload_matrix(Role::Down(0), Weight::F32 { shape: vec![cols, cols], data: b })?;
    let each = (PIECE_BYTES / (4 * cols)).max(1);
    let mut product = Vec::with_capacity(a.len());
    for piece in a.chunks(each * cols) {
        let x = ops.upload(piece.len() / cols, cols, piece)?;
        let y = ops.linear(&x, &b);
        product.extend(ops.read(&y).await?);
    }
    Ok(product)
}
