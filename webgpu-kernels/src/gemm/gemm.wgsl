// y[s * m + r, first_row + n] = sum over k of split s of x[r, k] * w[n, k], for many rows r.
//
// A workgroup of LANES_M x LANES_N lanes computes a tile of TILE_M x TILE_N outputs, each lane LANE_M x LANE_N of them. A step
// along k is half a block. Workgroup memory holds x and w in quads along k. A lane multiplies each of its LANE_M quads of x with
// each of its LANE_N quads of w. The values of the next step are fetched into registers before this step is multiplied.
#import invocation
#import unpack

struct Params {
    m: u32, rows: u32, cols: u32, blocks: u32, first_row: u32, y_stride: u32, tiles_m: u32, tiles: u32,
    splits: u32, split_steps: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q_weight: array<Words>;       // [rows, blocks, ..], see unpack
@group(0) @binding(2) var<storage, read> q_scale: array<u32>;          // [rows, blocks], two f16 to a word
#ifdef RAGGED
@group(0) @binding(3) var<storage, read> x: array<f32>;                // [m, cols]
#else
@group(0) @binding(3) var<storage, read> x: array<vec4<f32>>;          // [m, cols / 4]
#endif
@group(0) @binding(4) var<storage, read_write> y: array<f32>;          // [splits * m, y_stride]
#import load_x

const LANES: u32 = LANES_M * LANES_N;
const TILE_M: u32 = LANES_M * LANE_M;
const TILE_N: u32 = LANES_N * LANE_N;
const STEP: u32 = QUADS / 2u;                                          // in quads
const STEP_PARTS: u32 = STEP / PART_QUADS;

var<workgroup> tile_x: array<vec4<f32>, TILE_M * STEP>;                // [m, k / 4], see turn
var<workgroup> tile_w: array<vec4<f32>, TILE_N * STEP>;                // [n, k / 4]

// Swizzle: the quads of neighboring rows lie in different banks, so that lanes that read the same quad of each do not conflict.
fn turn(row: u32) -> u32 {
    return select(0u, (row >> 1u) & 3u, STEP == 4u);
}

@compute @workgroup_size(LANES_M * LANES_N)
fn main(
#import arguments
) {
#import from_arguments
    let group = workgroup_index(workgroups);
    let split = group / params.tiles;
    if (split >= params.splits) {
        return;
    }
    // Neighboring workgroups share their rows of w.
    let tile = group % params.tiles;
    let first_m = (tile % params.tiles_m) * TILE_M;
    let first_n = (tile / params.tiles_m) * TILE_N;
    let lane = invocation.lane;
    // 32 lanes, a subgroup on many devices, read 4 rows of x and 8 of w.
    let square = lane / 32u;
    let lane_m = 4u * (square % (LANES_M / 4u)) + lane / 8u % 4u;
    let lane_n = 8u * (square / (LANES_M / 4u)) + lane % 8u;
    let turn_m = turn(lane_m);
    let turn_n = turn(lane_n);
#for a in 0..LANE_M
#for b in 0..LANE_N
    var sum$a_$b = 0.0;
#endfor
#endfor
    // Rows beyond the last repeat it and are not written.
#for i in 0..X_FETCHES
    var x$i = vec4<f32>(0.0);
    let from_m$i = min(first_m + (lane + $iu * LANES) / STEP, params.m - 1u);
#endfor
#for i in 0..W_FETCHES
    var w$i: Part;
    let from_n$i = min(first_n + (lane + $iu * LANES) / STEP_PARTS, params.rows - 1u);
#endfor

    let begin = split * params.split_steps;
    let end = min(begin + params.split_steps, 2u * params.blocks);
    for (var step = begin; step <= end; step++) {
        if (step > begin) {
#for i in 0..X_FETCHES
            {
                let q = lane + $iu * LANES;
                if (q < TILE_M * STEP) {
                    tile_x[q / STEP * STEP + ((q % STEP) ^ turn(q / STEP))] = x$i;
                }
            }
#endfor
#for i in 0..W_FETCHES
            {
                let q = lane + $iu * LANES;
                if (q < TILE_N * STEP_PARTS) {
#for j in 0..PART_QUADS
                    tile_w[q / STEP_PARTS * STEP + ((q % STEP_PARTS * PART_QUADS + $ju) ^ turn(q / STEP_PARTS))]
                        = part4(w$i, $ju);
#endfor
                }
            }
#endfor
        }
        workgroupBarrier();
        if (step < end) {
#for i in 0..X_FETCHES
            x$i = load_x(from_m$i, step * STEP + (lane + $iu * LANES) % STEP);
#endfor
#for i in 0..W_FETCHES
            let part$i = (step & 1u) * STEP_PARTS + (lane + $iu * LANES) % STEP_PARTS;
            w$i = load_part(from_n$i, step >> 1u, part$i, params.blocks);
#endfor
        }
        if (step > begin) {
            for (var k = 0u; k < STEP; k++) {
                let at_m = lane_m * STEP + (k ^ turn_m);
                let at_n = lane_n * STEP + (k ^ turn_n);
#for a in 0..LANE_M
                let a$a = tile_x[at_m + $au * LANES_M * STEP];
#endfor
#for b in 0..LANE_N
                {
                    let b = tile_w[at_n + $bu * LANES_N * STEP];
#for a in 0..LANE_M
                    sum$a_$b += a$a.x * b.x;
                    sum$a_$b += a$a.y * b.y;
                    sum$a_$b += a$a.z * b.z;
                    sum$a_$b += a$a.w * b.w;
#endfor
                }
#endfor
            }
        }
        workgroupBarrier();
    }

#for a in 0..LANE_M
    {
        let m = first_m + lane_m + $au * LANES_M;
        if (m < params.m) {
            let at = (split * params.m + m) * params.y_stride + params.first_row;
#for b in 0..LANE_N
            {
                let n = first_n + lane_n + $bu * LANES_N;
                if (n < params.rows) {
                    y[at + n] = sum$a_$b;
                }
            }
#endfor
        }
    }
#endfor
}
