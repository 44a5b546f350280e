// One step of coordinate descent, with a lane per row: sets each of 32 codes of a group in turn to its optimum, with all others
// fixed.
#import invocation

struct Params { rows: u32, cols: u32, groups: u32, group: u32, len: u32, offset: u32, max_code: u32 }

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> residual: array<f32>;           // [rows, cols]
@group(0) @binding(2) var<storage, read> lines: array<f32>;              // [len, cols], the group's rows of the Hessian
@group(0) @binding(3) var<storage, read> grid: array<vec2<f32>>;         // [rows, groups]: scale, zero
@group(0) @binding(4) var<storage, read_write> codes: array<f32>;        // [rows, cols]
@group(0) @binding(5) var<storage, read_write> changes: array<f32>;      // [rows, 32]: changes of the weights

var<workgroup> hessian: array<f32, BLOCK * BLOCK>;
var<workgroup> left: array<f32, BLOCK * LANES>;                                // [column, lane]

@compute @workgroup_size(LANES)
fn main(
#import arguments
) {
#import from_arguments
    let lane = invocation.lane;
    let square = params.group * params.len + params.offset;
    for (var i = lane; i < BLOCK * BLOCK; i += LANES) {
        hessian[i] = lines[(params.offset + i / BLOCK) * params.cols + square + i % BLOCK];
    }
    workgroupBarrier();
    let row = workgroup_index(workgroups) * LANES + lane;
    if (row >= params.rows) {
        return;
    }
    let first = row * params.cols + params.group * params.len + params.offset;
    let scale_zero = grid[row * params.groups + params.group];
    for (var k = 0u; k < BLOCK; k++) {
        left[k * LANES + lane] = residual[first + k];
    }
    for (var k = 0u; k < BLOCK; k++) {
        let old = codes[first + k];
        let value = (old - scale_zero.y) * scale_zero.x;
        let wanted = value + left[k * LANES + lane] / hessian[k * BLOCK + k];
        let code = clamp(round(wanted / scale_zero.x) + scale_zero.y, 0.0, f32(params.max_code));
        let change = (code - old) * scale_zero.x;
        changes[row * BLOCK + k] = change;
        if (change != 0.0) {
            codes[first + k] = code;
            for (var j = k + 1u; j < BLOCK; j++) {
                left[j * LANES + lane] -= change * hessian[k * BLOCK + j];
            }
        }
    }
}
