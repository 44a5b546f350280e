// sums[s, i, j] += sum over t of split s of weight[t] * a[t, first_row + i] * x[t, j], where a is x, or float - x.
// A workgroup of 8 x 8 lanes adds up a square of EDGE x EDGE outputs, a lane LANE x LANE of them, in quads eight quads
// apart. What f32 lost of earlier additions lies in `lost` and is given back (Kahan), so that any number of calls is as
// good as one.
#import invocation

struct Params {
    tokens: u32, cols: u32, first_row: u32, rows: u32, tiles_j: u32, tiles: u32, splits: u32, split_tokens: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;           // [tokens, cols / 4]
@group(0) @binding(2) var<storage, read> float: array<vec4<f32>>;       // [tokens, cols / 4], with DRIFT
@group(0) @binding(3) var<storage, read> weight: array<f32>;            // [tokens]
@group(0) @binding(4) var<storage, read_write> sums: array<vec4<f32>>;  // [splits, rows, cols / 4]
@group(0) @binding(5) var<storage, read_write> lost: array<vec4<f32>>;  // [splits, rows, cols / 4]

const LANES: u32 = 64u;
const EDGE: u32 = 8u * LANE;
const COLUMN: u32 = EDGE / 4u;
const STEP: u32 = 16u;

var<workgroup> tile_a: array<vec4<f32>, STEP * COLUMN>;                 // [t, i / 4]
var<workgroup> tile_x: array<vec4<f32>, STEP * COLUMN>;                 // [t, j / 4]

@compute @workgroup_size(8, 8)
fn main(workgroups: Workgroups, invocation: Invocation) {
    let group = workgroup_index(workgroups);
    let split = group / params.tiles;
    if (split >= params.splits) {
        return;
    }
    let first_i = group % params.tiles / params.tiles_j * EDGE;
    let first_j = group % params.tiles % params.tiles_j * EDGE;
#ifndef DRIFT
    // The other triangle is the same.
    if (first_j >= params.first_row + first_i + EDGE) {
        return;
    }
#endif
    let lane = invocation.lane;
    let lane_i = lane / 8u;
    let lane_j = lane % 8u;
    let quads = params.cols / 4u;
#for a in 0..QUADS
#for i in 0..4
#for b in 0..QUADS
    var sum$a_$i_$b = vec4<f32>(0.0);
#endfor
#endfor
#endfor

    let end = min((split + 1u) * params.split_tokens, params.tokens);
    for (var first = split * params.split_tokens; first < end; first += STEP) {
        for (var q = lane; q < STEP * COLUMN; q += LANES) {
            let t = first + q / COLUMN;
            let i = (params.first_row + first_i) / 4u + q % COLUMN;
            let j = first_j / 4u + q % COLUMN;
            var a = vec4<f32>(0.0);
            var b = vec4<f32>(0.0);
            if (t < end && i < quads) {
                a = x[t * quads + i];
#ifdef DRIFT
                a = float[t * quads + i] - a;
#endif
                a *= weight[t];
            }
            if (t < end && j < quads) {
                b = x[t * quads + j];
            }
            tile_a[q] = a;
            tile_x[q] = b;
        }
        workgroupBarrier();
        for (var k = 0u; k < STEP; k++) {
#for a in 0..QUADS
            let a$a = tile_a[k * COLUMN + lane_i + 8u * $au];
#endfor
#for b in 0..QUADS
            let b$b = tile_x[k * COLUMN + lane_j + 8u * $bu];
#endfor
#for a in 0..QUADS
#for i in 0..4
#for b in 0..QUADS
            sum$a_$i_$b += a$a[$i] * b$b;
#endfor
#endfor
#endfor
        }
        workgroupBarrier();
    }

#for a in 0..QUADS
#for i in 0..4
    {
        let i = first_i + 4u * (lane_i + 8u * $au) + $iu;
#for b in 0..QUADS
        {
            let j = first_j / 4u + lane_j + 8u * $bu;
            if (i < params.rows && j < quads) {
                let at = (split * params.rows + i) * quads + j;
                let before = sums[at];
                let addend = sum$a_$i_$b - lost[at];
                let after = before + addend;
                sums[at] = after;
                lost[at] = (after - before) - addend;
            }
        }
#endfor
    }
#endfor
#endfor
}
