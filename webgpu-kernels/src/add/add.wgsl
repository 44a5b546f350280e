// x[r, c] += y[c]. If `cols` is the number of values of x, it is x[i] += y[i].
#import invocation

struct Params { len: u32, cols: u32 }

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> x: array<f32>;          // [rows, cols], len values
@group(0) @binding(2) var<storage, read> y: array<f32>;                // [cols]

@compute @workgroup_size(WORKGROUP)
fn main(
#import arguments
) {
#import from_arguments
    let i = workgroup_index(workgroups) * WORKGROUP + invocation.lane;
    if (i < params.len) {
        x[i] += y[i % params.cols];
    }
}
