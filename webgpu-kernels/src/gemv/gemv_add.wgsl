// sum[n] += sum over k of x[k] * w[n, k], then y[n] = sum[n] * norm[n]. squares[g] is the sum of workgroup g's sum[n]^2.

struct Params { rows: u32, cols: u32, blocks: u32, first_row: u32, y_stride: u32 }

@group(0) @binding(0) var<uniform> params: Params;
#import gemv/inputs
@group(0) @binding(5) var<storage, read> norm: array<f32>;             // [rows]
@group(0) @binding(6) var<storage, read_write> sum: array<f32>;        // [rows]
@group(0) @binding(7) var<storage, read_write> squares: array<f32>;    // [workgroups]
#import gemv/team
#ifdef TEAMS
var<workgroup> team_squares: array<f32, WORKGROUP / TEAM>;
#endif
#ifndef CLUSTER_TOTALS
var<workgroup> row_squares: array<f32, ROWS>;
#endif

@compute @workgroup_size(WORKGROUP)
fn main(
#import arguments
) {
#import from_arguments
#include gemv/place
#for r in 0..ROWS
    // Rows beyond the last repeat it and are not written.
    let row$r = min(first + $ru, params.rows - 1u);
#endfor
    // Start these loads before the product.
    let n = first + lane;
    let n_known = min(first + min(lane, ROWS - 1u), params.rows - 1u);
    let sum_before = sum[n_known];
    let norm_here = norm[n_known];
#include gemv/product
#include gemv/reduce
    var square = 0.0;
    if (lane < ROWS && n < params.rows) {
        let value = sum_before + total;
        sum[n] = value;
        y[n] = value * norm_here;
        square = value * value;
    }
#ifdef TEAMS
    square = cluster_sum(square);
    if (lane == 0u) {
        team_squares[invocation.cluster] = square;
    }
    workgroupBarrier();
    if (invocation.lane == 0u) {
        square = team_squares[0];
        for (var t = 1u; t < WORKGROUP / TEAM; t++) {
            square += team_squares[t];
        }
        squares[group] = square;
    }
#else
#ifdef BUTTERFLY
    square = cluster_sum(square);
#else
    if (lane < ROWS) {
        row_squares[lane] = square;
    }
    workgroupBarrier();
    if (lane == 0u) {
        square = 0.0;
#for r in 0..ROWS
        square += row_squares[$r];
#endfor
    }
#endif
    if (lane == 0u) {
        squares[group] = square;
    }
#endif
}
