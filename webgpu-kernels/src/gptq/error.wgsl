// error[r, c] = weights[r, c] - (code - zero) * scale: the rounding error.
#import invocation

struct Params { len: u32, cols: u32, groups: u32, group_len: u32 }

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> weights: array<f32>;            // [rows, cols]
@group(0) @binding(2) var<storage, read> codes: array<f32>;              // [rows, cols]
@group(0) @binding(3) var<storage, read> grid: array<vec2<f32>>;         // [rows, groups]: scale, zero
@group(0) @binding(4) var<storage, read_write> error: array<f32>;        // [rows, cols], len values

@compute @workgroup_size(256)
fn main(
#import arguments
) {
#import from_arguments
    let i = workgroup_index(workgroups) * 256u + invocation.lane;
    if (i < params.len) {
        let row = i / params.cols;
        let scale_zero = grid[row * params.groups + i % params.cols / params.group_len];
        error[i] = weights[i] - (codes[i] - scale_zero.y) * scale_zero.x;
    }
}
