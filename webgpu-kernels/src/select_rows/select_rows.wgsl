// y[i, :] = x[rows[i], :]
#import invocation

struct Params { len: u32, cols: u32 }

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;                // [any, cols]
@group(0) @binding(2) var<storage, read> rows: array<u32>;             // [count]
@group(0) @binding(3) var<storage, read_write> y: array<f32>;          // [count, cols], len values

@compute @workgroup_size(WORKGROUP)
fn main(
#import arguments
) {
#import from_arguments
    let i = workgroup_index(workgroups) * WORKGROUP + invocation.lane;
    if (i < params.len) {
        let row = i / params.cols;
        y[i] = x[rows[row] * params.cols + (i - row * params.cols)];
    }
}
