// y[r, first_row + n] = sum over s of parts[s, r, n]: adds the partial sums of split-K.
#import invocation

struct Params { m: u32, rows: u32, first_row: u32, y_stride: u32, splits: u32 }

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> parts: array<f32>;            // [splits, m, rows]
@group(0) @binding(2) var<storage, read_write> y: array<f32>;          // [m, y_stride]

@compute @workgroup_size(WORKGROUP)
fn main(
#import arguments
) {
#import from_arguments
    let i = workgroup_index(workgroups) * WORKGROUP + invocation.lane;
    let len = params.m * params.rows;
    if (i >= len) {
        return;
    }
    var sum = parts[i];
    for (var s = 1u; s < params.splits; s++) {
        sum += parts[s * len + i];
    }
    y[i / params.rows * params.y_stride + params.first_row + i % params.rows] = sum;
}
