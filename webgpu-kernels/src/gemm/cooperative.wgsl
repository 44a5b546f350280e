// y[s * m + r, first_row + n] = inverse[r] * sum over k of range s of x[r, k] * w[n, k], by cooperative matrices (fragments) of
// 16 x 16: x and w in f16, sums in f32.
//
// A workgroup of WARPS_M x WARPS_N subgroups computes a tile of TILE_M x TILE_N outputs, each subgroup FRAGS_M x FRAGS_N
// fragments. A step along k is STEP quads, which workgroup memory holds row by row. The values of the next step are fetched into
// registers before this step is multiplied.
#import invocation
#import unpack
#ifdef EIGHT_NIBBLES
#import gemm/nibbles_f16
#endif

struct Params {
    m: u32, rows: u32, blocks: u32, first_row: u32, y_stride: u32, tiles_m: u32, tiles: u32, x_quads: u32, range_blocks: u32,
    ranges: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q_weight: array<Words>;       // [rows, blocks, ..], see unpack
@group(0) @binding(2) var<storage, read> q_scale: array<u32>;          // [rows, blocks], two f16 to a word
@group(0) @binding(3) var<storage, read> x: array<vec4<f16>>;          // [m, x_quads]
@group(0) @binding(4) var<storage, read> inverse: array<f32>;          // [m]
@group(0) @binding(5) var<storage, read_write> y: array<f32>;          // [ranges * m, y_stride]

const LANES: u32 = WARPS_M * WARPS_N * SUBGROUP_MIN_SIZE;
const TILE_M: u32 = 16u * WARPS_M * FRAGS_M;
const TILE_N: u32 = 16u * WARPS_N * FRAGS_N;
const STEP_PARTS: u32 = STEP / PART_QUADS;
const STEP_PAIRS: u32 = STEP / 2u;
const BLOCK_PARTS: u32 = QUADS / PART_QUADS;
// Two quads of padding shift each row by 16 bytes, so that rows use different banks.
const STRIDE: u32 = STEP + 2u;

#ifdef EIGHT_NIBBLES
// A part as it lies in memory. A conversion would wait for the load before the products of the step before.
struct Raw { word: u32, scales: u32 }
#else
alias Raw = Part;
#endif

// Part `part` of a row.
fn fetch(row: u32, part: u32) -> Raw {
    let b = part / BLOCK_PARTS;
#ifdef EIGHT_NIBBLES
    let group = row * params.blocks + b;
    return Raw(q_weight[group][part % BLOCK_PARTS], q_scale[group >> 1u]);
#else
    return load_part(row, b, part % BLOCK_PARTS, params.blocks);
#endif
}

var<workgroup> tile_x: array<vec4<f16>, TILE_M * STRIDE>;              // [m, k / 4]
var<workgroup> tile_w: array<vec4<f16>, TILE_N * STRIDE>;              // [n, k / 4]
var<workgroup> results: array<f32, WARPS_M * WARPS_N * 256u>;          // [subgroup, m, n] of one fragment each

@compute @workgroup_size(WARPS_M * WARPS_N * SUBGROUP_MIN_SIZE)
fn main(
#import arguments
) {
#import from_arguments
    // Not `workgroup_index`: cooperative matrices need uniform control flow, and naga treats no function result as uniform.
    let group = workgroup_id.y * workgroup_count.x + workgroup_id.x;
    let range = group / params.tiles;
    if (range >= params.ranges) {
        return;
    }
    let tile = group % params.tiles;
    // Neighboring workgroups share their rows of w.
    let first_m = (tile % params.tiles_m) * TILE_M;
    let first_n = (tile / params.tiles_m) * TILE_N;
    let lane = invocation.lane;
    let warp = invocation.subgroup;
    let warp_m = warp % WARPS_M * FRAGS_M * 16u;
    let warp_n = warp / WARPS_M * FRAGS_N * 16u;
#for a in 0..FRAGS_M
#for b in 0..FRAGS_N
    var sum$a_$b = coop_mat16x16<f32, C>();
#endfor
#endfor
    // Rows beyond the last repeat it and are not written.
#for i in 0..X_FETCHES
    var x$i = vec4<f16>();
    var next_x$i = vec4<f16>();
    let from_m$i = min(first_m + (lane + $iu * LANES) / STEP_PAIRS, params.m - 1u) * params.x_quads;
#endfor
#for i in 0..W_FETCHES
    var w$i: Raw;
    let from_n$i = min(first_n + (lane + $iu * LANES) / STEP_PARTS, params.rows - 1u);
#endfor

    let last = params.blocks * QUADS / STEP - 1u;
    let begin = range * params.range_blocks * QUADS / STEP;
    let end = min(begin + params.range_blocks * QUADS / STEP, last + 1u);
    // A range may be empty.
    let first = min(begin, last);
#for i in 0..X_FETCHES
    {
        let quad = first * STEP + 2u * ((lane + $iu * LANES) % STEP_PAIRS);
        x$i = x[from_m$i + quad];
        next_x$i = x[from_m$i + quad + 1u];
    }
#endfor
#for i in 0..W_FETCHES
    {
        let part = first * STEP_PARTS + (lane + $iu * LANES) % STEP_PARTS;
        w$i = fetch(from_n$i, part);
    }
#endfor
    for (var step = begin; step < end; step++) {
#for i in 0..X_FETCHES
        {
            let q = lane + $iu * LANES;
            if (q < TILE_M * STEP_PAIRS) {
                let at = q / STEP_PAIRS * STRIDE + 2u * (q % STEP_PAIRS);
                tile_x[at] = x$i;
                tile_x[at + 1u] = next_x$i;
            }
        }
#endfor
#for i in 0..W_FETCHES
        {
            let q = lane + $iu * LANES;
            if (q < TILE_N * STEP_PARTS) {
                let at = q / STEP_PARTS * STRIDE + q % STEP_PARTS * PART_QUADS;
#ifdef EIGHT_NIBBLES
                let group = from_n$i * params.blocks + (step * STEP_PARTS + q % STEP_PARTS) / BLOCK_PARTS;
                let eight = eight_of(w$i.word, scale_of(w$i.scales, group));
                tile_w[at] = eight.low;
                tile_w[at + 1u] = eight.high;
#else
#for j in 0..PART_QUADS
                tile_w[at + $ju] = vec4<f16>(part4(w$i, $ju));
#endfor
#endif
            }
        }
#endfor
        workgroupBarrier();
        // The last step fetches its own values again: naga does not treat a condition on `step` as uniform.
        let next = min(step + 1u, last);
#for i in 0..X_FETCHES
        {
            let quad = next * STEP + 2u * ((lane + $iu * LANES) % STEP_PAIRS);
            x$i = x[from_m$i + quad];
            next_x$i = x[from_m$i + quad + 1u];
        }
#endfor
#for i in 0..W_FETCHES
        {
            let part = next * STEP_PARTS + (lane + $iu * LANES) % STEP_PARTS;
            w$i = fetch(from_n$i, part);
        }
#endfor
        for (var k = 0u; k < STEP; k += 4u) {
#for a in 0..FRAGS_M
            let at_x$a = (warp_m + 16u * $au) * STRIDE + k;
            let x_$a = coopLoadT<coop_mat16x16<f16, A>>(&tile_x[at_x$a], STRIDE);
#endfor
#for b in 0..FRAGS_N
            {
                let at_w = (warp_n + 16u * $bu) * STRIDE + k;
                let w_ = coopLoad<coop_mat16x16<f16, B>>(&tile_w[at_w], STRIDE);
#for a in 0..FRAGS_M
                sum$a_$b = coopMultiplyAdd(x_$a, w_, sum$a_$b);
#endfor
            }
#endfor
        }
        workgroupBarrier();
    }

    let results_at = warp * 256u;
#for a in 0..FRAGS_M
#for b in 0..FRAGS_N
    coopStoreT(sum$a_$b, &results[results_at], 16u);
    workgroupBarrier();
    for (var i = invocation.subgroup_lane; i < 256u; i += SUBGROUP_MIN_SIZE) {
        let m = first_m + warp_m + 16u * $au + i / 16u;
        let n = first_n + warp_n + 16u * $bu + i % 16u;
        if (m < params.m && n < params.rows) {
            y[(range * params.m + m) * params.y_stride + params.first_row + n] = results[results_at + i] * inverse[m];
        }
    }
    workgroupBarrier();
#endfor
#endfor
}
