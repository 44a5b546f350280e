// One step of coordinate descent, with a lane per row: sets the scale of one group to its optimum, with the codes fixed.
// With residual r, m = codes - zero, and S the group's diagonal block of the Hessian, a change d of the scale changes the objective
// by d^2 m S m - 2 d r m.
#import invocation

struct Params { rows: u32, cols: u32, groups: u32, group: u32, len: u32, coarse_bits: u32 }

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> residual: array<f32>;           // [rows, cols]
@group(0) @binding(2) var<storage, read> codes: array<f32>;              // [rows, cols]
@group(0) @binding(3) var<storage, read> lines: array<f32>;              // [len, cols], the group's rows of the Hessian
@group(0) @binding(4) var<storage, read_write> grid: array<vec2<f32>>;   // [rows, groups]: scale, zero
@group(0) @binding(5) var<storage, read_write> changes: array<f32>;      // [rows, len]: changes of the weights

const LEAST: f32 = 6.103515625e-5;                                       // smallest normal number of f16
const LARGEST: f32 = 65504.0;

// The nearest f16. With coarse bits, the nearest f16 whose products with integers of that many bits are f16 too.
fn rounded(scale: f32) -> f32 {
    let largest = select(LARGEST, 32768.0 / f32(1u << params.coarse_bits), params.coarse_bits > 0u);
    var bits = pack2x16float(vec2<f32>(clamp(scale, -largest, largest), 0.0)) & 0xffffu;
    if (params.coarse_bits > 0u) {
        let b = params.coarse_bits;
        bits = (bits & 0x8000u) | ((((bits & 0x7fffu) + (1u << (b - 1u))) >> b) << b);
    }
    return unpack2x16float(bits).x;
}

@compute @workgroup_size(LANES)
fn main(
#import arguments
) {
#import from_arguments
    let row = workgroup_index(workgroups) * LANES + invocation.lane;
    if (row >= params.rows) {
        return;
    }
    let len = params.len;
    let first = row * params.cols + params.group * len;
    let scale_zero = grid[row * params.groups + params.group];
    var curvature = 0.0;
    var slope = 0.0;
    let square = params.group * len;
    for (var i = 0u; i < len; i++) {
        let multiple = codes[first + i] - scale_zero.y;
        var product = 0.0;
        for (var j = 0u; j < len; j++) {
            product += lines[i * params.cols + square + j] * (codes[first + j] - scale_zero.y);
        }
        curvature += product * multiple;
        slope += residual[first + i] * multiple;
    }
    var change = 0.0;
    if (curvature > 0.0) {
        let scale = rounded(scale_zero.x + slope / curvature);
        let step = scale - scale_zero.x;
        if (abs(scale) >= LEAST && step * (step * curvature - 2.0 * slope) < 0.0) {
            change = step;
            grid[row * params.groups + params.group].x = scale;
        }
    }
    for (var i = 0u; i < len; i++) {
        changes[row * len + i] = change * (codes[first + i] - scale_zero.y);
    }
}
