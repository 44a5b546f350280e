// y[n] = sum over k of x[k] * w[n, k] / sqrt(mean of x^2 before its norm + eps).
// With SWIGLU y[i] = silu(v[i]) * v[rows / 2 + i], where v is the y above.

struct Params { rows: u32, cols: u32, blocks: u32, first_row: u32, parts: u32, eps: f32 }

@group(0) @binding(0) var<uniform> params: Params;
#import gemv/inputs
#import gemv/team
#import gemv/squares
#ifdef SWIGLU
#import activation
#endif

@compute @workgroup_size(WORKGROUP)
fn main(
#import arguments
) {
#import from_arguments
#include gemv/place
#for r in 0..ROWS
    // Rows beyond the last repeat it and are not written.
#ifdef SWIGLU
    let row$r = min(first + $ru / 2u, inner - 1u) + $ru % 2u * inner;
#else
    let row$r = min(first + $ru, params.rows - 1u);
#endif
#endfor
#include gemv/load_squares
#include gemv/product
#include gemv/sum_squares
#include gemv/reduce
#ifdef SWIGLU
    let n = first + lane / 2u;
    if (lane % 2u == 0u && lane < ROWS && n < inner) {
        y[n] = activation(total) * other;
    }
#else
    let n = first + lane;
    if (lane < ROWS && n < params.rows) {
        y[params.first_row + n] = total;
    }
#endif
}
