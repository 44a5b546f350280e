// y[m, first_row + n] = inverse[m] * sum over k of x[m, k] * w[n, k], by cooperative matrices (fragments) of 16 x 16, for few rows m.
//
// Loads of w and latency bound the speed. A workgroup computes all rows m of TILE_N outputs n. Its subgroups form WARPS_K teams of
// WARPS_M x WARPS_N, each for its own range of k. A team fetches w and x for DEPTH steps ahead into registers, and keeps one step in its
// own part of workgroup memory. If there are fewer fragments of rows than WARPS_M, some subgroups only help to convert w. At the end, the
// workgroup adds the ranges in order.
#import invocation
#import unpack
#import gemm/nibbles_f16

struct Params {
    m: u32, rows: u32, blocks: u32, first_row: u32, y_stride: u32, tiles_m: u32, tiles: u32, x_quads: u32, range_blocks: u32,
    ranges: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q_weight: array<Words>;       // [rows, blocks, ..], see unpack
@group(0) @binding(2) var<storage, read> q_scale: array<u32>;          // [rows, blocks], two f16 to a word
@group(0) @binding(3) var<storage, read> x: array<vec4<u32>>;          // [TILE_M, x_quads / 2], eight f16 each
@group(0) @binding(4) var<storage, read> inverse: array<f32>;          // [m]
@group(0) @binding(5) var<storage, read_write> y: array<f32>;          // [m, y_stride]

const TEAM_WARPS: u32 = WARPS_M * WARPS_N;
const TEAM: u32 = TEAM_WARPS * SUBGROUP_MIN_SIZE;                      // lanes
const TILE_M: u32 = 16u * M_FRAGS;
const TILE_N: u32 = 16u * WARPS_N * FRAGS_N;
const STEP: u32 = STEP_BLOCKS * QUADS;                                 // in quads
const STEP_PAIRS: u32 = STEP / 2u;
// Two quads of padding shift each row by 16 bytes, so that rows use different banks.
const STRIDE: u32 = STEP + 2u;

var<workgroup> tile_w: array<vec4<f16>, WARPS_K * TILE_N * STRIDE>;    // [team, n, k / 4]
var<workgroup> tile_x: array<vec4<f16>, WARPS_K * TILE_M * STRIDE>;    // [team, m, k / 4]
var<workgroup> results: array<f32, WARPS_K * TEAM_WARPS * 256u>;       // [subgroup, m, n] of one fragment each

fn halves(words: vec2<u32>) -> vec4<f16> {
    return vec4<f16>(vec2<f16>(unpack2x16float(words.x)), vec2<f16>(unpack2x16float(words.y)));
}

@compute @workgroup_size(WARPS_K * TEAM)
fn main(
#import arguments
) {
#import from_arguments
    // Not `workgroup_index`: cooperative matrices need uniform control flow, and naga treats no function result as uniform.
    let tile = workgroup_id.y * workgroup_count.x + workgroup_id.x;
    if (tile >= params.tiles) {
        return;
    }
    let first_n = tile * TILE_N;
    let warp = invocation.subgroup;
    let team = warp / TEAM_WARPS;
    let lane = invocation.lane % TEAM;
    let begin = team * params.range_blocks;
    let end = min(begin + params.range_blocks, params.blocks);
    let last_block = params.blocks - 1u;
    let warp_m = warp % TEAM_WARPS / WARPS_N;
    let team_x = team * TILE_M * STRIDE;
    let warp_w = (team * TILE_N + warp % WARPS_N * FRAGS_N * 16u) * STRIDE;
#for a in 0..FRAGS_M
    let frag_x$a = team_x + (warp_m * FRAGS_M + $au) % M_FRAGS * 16u * STRIDE;
#for b in 0..FRAGS_N
    var sum$a_$b = coop_mat16x16<f32, C>();
#endfor
#endfor
    // Values stay in registers as they lie in memory. A conversion would wait for its load, long before they are needed.
    // Rows beyond the last repeat it and are not written.
#for i in 0..W_FETCHES
    let q$i = lane + $iu * TEAM;
    let row$i = min(first_n + q$i / STEP_BLOCKS, params.rows - 1u) * params.blocks;
    let from$i = begin + q$i % STEP_BLOCKS;
    let to$i = (team * TILE_N + q$i / STEP_BLOCKS) * STRIDE + q$i % STEP_BLOCKS * QUADS;
#for d in 0..DEPTH
    var w$d_$i = q_weight[row$i + min(from$i + $du * STEP_BLOCKS, last_block)];
    var scales$d_$i = q_scale[(row$i + min(from$i + $du * STEP_BLOCKS, last_block)) >> 1u];
#endfor
#endfor
    let last = params.x_quads - STEP;
#for i in 0..X_FETCHES
    let p$i = lane + $iu * TEAM;
    let x_from$i = min(p$i / STEP_PAIRS, TILE_M - 1u) * params.x_quads + 2u * (p$i % STEP_PAIRS);
    let x_to$i = team_x + p$i / STEP_PAIRS * STRIDE + 2u * (p$i % STEP_PAIRS);
#for d in 0..DEPTH
    var x$d_$i = x[(x_from$i + min(begin * QUADS + $du * STEP, last)) >> 1u];
#endfor
#endfor

    for (var step = 0u; step * STEP_BLOCKS < params.range_blocks; step += DEPTH) {
#for d in 0..DEPTH
        {
            // Blocks beyond the end are zero, so x does not matter there.
            let ahead = step + $du + DEPTH;
            let quad = min(begin * QUADS + ahead * STEP, last);
#for i in 0..X_FETCHES
#ifdef PARTIAL_X
            if (p$i < TILE_M * STEP_PAIRS) {
#else
            {
#endif
                tile_x[x_to$i] = halves(x$d_$i.xy);
                tile_x[x_to$i + 1u] = halves(x$d_$i.zw);
            }
            x$d_$i = x[(x_from$i + quad) >> 1u];
#endfor
#for i in 0..W_FETCHES
#ifdef PARTIAL_W
            if (q$i < TILE_N * STEP_BLOCKS) {
#else
            {
#endif
                let b = from$i + (step + $du) * STEP_BLOCKS;
                let scale = select(0.0h, scale_of(scales$d_$i, row$i + b), b < end);
#for j in 0..BLOCK_WORDS
                let eight$j = eight_of(w$d_$i[$j], scale);
                tile_w[to$i + 2u * $ju] = eight$j.low;
                tile_w[to$i + 2u * $ju + 1u] = eight$j.high;
#endfor
            }
            let next$i = row$i + min(from$i + ahead * STEP_BLOCKS, last_block);
            w$d_$i = q_weight[next$i];
            scales$d_$i = q_scale[next$i >> 1u];
#endfor
            workgroupBarrier();
#for k in 0..STEP_FRAGS
            {
#for a in 0..FRAGS_M
                let x_$a = coopLoadT<coop_mat16x16<f16, A>>(
                    &tile_x[frag_x$a + 4u * $ku], STRIDE,
                );
#endfor
#for b in 0..FRAGS_N
                let w_$b = coopLoad<coop_mat16x16<f16, B>>(
                    &tile_w[warp_w + 16u * $bu * STRIDE + 4u * $ku], STRIDE,
                );
#for a in 0..FRAGS_M
                sum$a_$b = coopMultiplyAdd(x_$a, w_$b, sum$a_$b);
#endfor
#endfor
            }
#endfor
            workgroupBarrier();
        }
#endfor
    }

#for a in 0..FRAGS_M
#for b in 0..FRAGS_N
    coopStoreT(sum$a_$b, &results[warp * 256u], 16u);
    workgroupBarrier();
    for (var i = invocation.lane; i < TEAM_WARPS * 256u; i += WARPS_K * TEAM) {
        let m = 16u * (i / 256u / WARPS_N * FRAGS_M + $au) + i / 16u % 16u;
        let n = first_n + (i / 256u % WARPS_N * FRAGS_N + $bu) * 16u + i % 16u;
        if (m < params.m && n < params.rows) {
            // As gemm_cooperative and gemm_join.
            var total = results[i] * inverse[m];
#for s in 1..WARPS_K
            total += results[$su * TEAM_WARPS * 256u + i] * inverse[m];
#endfor
            y[m * params.y_stride + params.first_row + n] = total;
        }
    }
    workgroupBarrier();
#endfor
#endfor
}
