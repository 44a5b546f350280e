// y[m, first_row + n] = sum over k of x[m, k] * w[n, k], for BATCH rows m.

struct Params { rows: u32, cols: u32, blocks: u32, first_row: u32, y_stride: u32 }

@group(0) @binding(0) var<uniform> params: Params;
#import gemv/inputs
#import gemv/team

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
#include gemv/product
#include gemv/reduce
    if (lane < ROWS * BATCH) {
        let n = first + lane % ROWS;
        if (n < params.rows) {
            y[(lane / ROWS) * params.y_stride + params.first_row + n] = total;
        }
    }
}
