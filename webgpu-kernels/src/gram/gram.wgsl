// sums[s, i, j] += sum over t of split s of weight[t] * a[t, first_row + i] * x[t, j], where a is x, or float - base.
//
// A workgroup of LANES x LANES lanes computes a square of EDGE x EDGE outputs, each lane LANE x LANE of them, in quads that are
// LANES quads apart. The values of the next step are fetched while this step is multiplied. `lost` holds the compensation of Kahan
// summation, so that precision does not depend on the number of calls.
#import invocation

struct Params {
    tokens: u32, cols: u32, left_cols: u32, first_row: u32, rows: u32, tiles_j: u32, tiles: u32, splits: u32,
    split_tokens: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;           // [tokens, cols / 4]
@group(0) @binding(2) var<storage, read> float: array<vec4<f32>>;       // [tokens, left_cols / 4], with DRIFT
@group(0) @binding(3) var<storage, read> base: array<vec4<f32>>;        // [tokens, left_cols / 4], with DRIFT
@group(0) @binding(4) var<storage, read> weight: array<f32>;            // [tokens]
@group(0) @binding(5) var<storage, read_write> sums: array<vec4<f32>>;  // [splits, rows, cols / 4]
@group(0) @binding(6) var<storage, read_write> lost: array<vec4<f32>>;  // [splits, rows, cols / 4]

const EDGE: u32 = LANES * LANE;
const COLUMN: u32 = EDGE / 4u;

var<workgroup> tile_a: array<vec4<f32>, STEP * COLUMN>;                 // [t, i / 4]
var<workgroup> tile_x: array<vec4<f32>, STEP * COLUMN>;                 // [t, j / 4]

@compute @workgroup_size(LANES * LANES)
fn main(
#import arguments
) {
#import from_arguments
    let group = workgroup_index(workgroups);
    let split = group / params.tiles;
    if (split >= params.splits) {
        return;
    }
    let first_i = group % params.tiles / params.tiles_j * EDGE;
    let first_j = group % params.tiles % params.tiles_j * EDGE;
#ifndef DRIFT
    // The sums are symmetric: skip the upper triangle.
    if (first_j >= params.first_row + first_i + EDGE) {
        return;
    }
#endif
    let lane = invocation.lane;
    // 32 lanes, a subgroup on many devices, form a 4 x 8 grid.
    let square = lane / 32u;
    let lane_i = 4u * (square % (LANES / 4u)) + lane / 8u % 4u;
    let lane_j = 8u * (square / (LANES / 4u)) + lane % 8u;
    let quads = params.cols / 4u;
    let left_quads = params.left_cols / 4u;
#for a in 0..QUADS
#for i in 0..4
#for b in 0..QUADS
    var sum$a_$i_$b = vec4<f32>(0.0);
#endfor
#endfor
#endfor

#for f in 0..FETCHES
    var a$f = vec4<f32>(0.0);
    var b$f = vec4<f32>(0.0);
    var weight$f = 0.0;
#ifdef DRIFT
    var float$f = vec4<f32>(0.0);
#endif
#endfor

    let begin = split * params.split_tokens;
    let end = min(begin + params.split_tokens, params.tokens);
    // The first step only fetches, the last only multiplies.
    for (var first = begin; first < end + STEP; first += STEP) {
        if (first > begin) {
#for f in 0..FETCHES
            {
                let q = lane + $fu * LANES * LANES;
#ifdef DRIFT
                let a = float$f - a$f;
#else
                let a = a$f;
#endif
                tile_a[q] = select(vec4<f32>(0.0), a * weight$f, first - STEP + q / COLUMN < end);
                tile_x[q] = b$f;
            }
#endfor
        }
        workgroupBarrier();
#for f in 0..FETCHES
        {
            // Store the fetched values unchanged: arithmetic on them would wait for memory.
            let q = lane + $fu * LANES * LANES;
            let t = min(first + q / COLUMN, params.tokens - 1u);
            let i = min((params.first_row + first_i) / 4u + q % COLUMN, left_quads - 1u);
            let j = min(first_j / 4u + q % COLUMN, quads - 1u);
#ifdef DRIFT
            a$f = base[t * left_quads + i];
            float$f = float[t * left_quads + i];
#else
            a$f = x[t * quads + i];
#endif
            b$f = x[t * quads + j];
            weight$f = weight[t];
        }
#endfor
        if (first > begin) {
            for (var k = 0u; k < STEP; k++) {
#for a in 0..QUADS
                let a$a = tile_a[k * COLUMN + lane_i + LANES * $au];
#endfor
#for b in 0..QUADS
                let b$b = tile_x[k * COLUMN + lane_j + LANES * $bu];
#endfor
#for a in 0..QUADS
#for i in 0..4
#for b in 0..QUADS
                sum$a_$i_$b += a$a[$i] * b$b;
#endfor
#endfor
#endfor
            }
        }
        workgroupBarrier();
    }

#for a in 0..QUADS
#for i in 0..4
    {
        let i = first_i + 4u * (lane_i + LANES * $au) + $iu;
#for b in 0..QUADS
        {
            let j = first_j / 4u + lane_j + LANES * $bu;
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
