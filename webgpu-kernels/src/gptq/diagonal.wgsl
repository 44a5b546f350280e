// y[first + k, first + k] = values[first + k] of a piece of a square matrix, whose rows start at `first`.
#import invocation

struct Params { first: u32, rows: u32, cols: u32 }

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> values: array<f32>;             // [cols]
@group(0) @binding(2) var<storage, read_write> y: array<f32>;            // [rows, cols]

@compute @workgroup_size(64)
fn main(
#import arguments
) {
#import from_arguments
    let k = workgroup_index(workgroups) * 64u + invocation.lane;
    if (k < params.rows) {
        y[k * params.cols + params.first + k] = values[params.first + k];
    }
}
