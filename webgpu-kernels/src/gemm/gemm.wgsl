// y[m, first_row + n] = sum over k of x[m, k] * w[n, k], for many rows m.
// A workgroup of 8 x 8 lanes computes a tile of TILE_M x TILE_N outputs, a lane LANE_M x LANE_N of them, in quads eight
// quads apart. Along k it goes half a block at a time: x and w lie in workgroup memory as columns of quads, so that the
// inner loop reads one quad for four multiplications by each value of the other side.
#import invocation
#import unpack

struct Params { m: u32, rows: u32, cols: u32, blocks: u32, first_row: u32, y_stride: u32, tiles_m: u32, tiles: u32 }

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q_weight: array<Words>;       // [rows, blocks, ..], see unpack
@group(0) @binding(2) var<storage, read> q_scale: array<u32>;          // [rows, blocks], two f16 to a word
#ifdef RAGGED
@group(0) @binding(3) var<storage, read> x: array<f32>;                // [m, cols]
#else
@group(0) @binding(3) var<storage, read> x: array<vec4<f32>>;          // [m, cols / 4]
#endif
@group(0) @binding(4) var<storage, read_write> y: array<f32>;          // [m, y_stride]
#import load_x

const LANES: u32 = 64u;
const TILE_M: u32 = 8u * LANE_M;
const TILE_N: u32 = 8u * LANE_N;
const COLUMN_M: u32 = TILE_M / 4u;
const COLUMN_N: u32 = TILE_N / 4u;
const STEP_QUADS: u32 = QUADS / 2u;
const DEPTH: u32 = 4u * STEP_QUADS;

var<workgroup> tile_x: array<vec4<f32>, DEPTH * COLUMN_M>;             // [k, m / 4]
var<workgroup> tile_w: array<vec4<f32>, DEPTH * COLUMN_N>;             // [k, n / 4]

// Rows beyond the last are computed like it and not written.
fn row_x(m: u32, quad: u32) -> vec4<f32> {
    return load_x(min(m, params.m - 1u), quad);
}

@compute @workgroup_size(8, 8)
fn main(workgroups: Workgroups, invocation: Invocation) {
    let tile = workgroup_index(workgroups);
    if (tile >= params.tiles) {
        return;
    }
    // Neighbouring workgroups share their rows of w.
    let first_m = (tile % params.tiles_m) * TILE_M;
    let first_n = (tile / params.tiles_m) * TILE_N;
    let lane = invocation.lane;
    let lane_m = lane / 8u;
    let lane_n = lane % 8u;
#for a in 0..QUADS_M
#for i in 0..4
#for b in 0..QUADS_N
    var sum$a_$i_$b = vec4<f32>(0.0);
#endfor
#endfor
#endfor

    for (var step = 0u; step < 2u * params.blocks; step++) {
        for (var q = lane; q < STEP_QUADS * COLUMN_M; q += LANES) {
            let k = q / COLUMN_M;
            let m = first_m + 4u * (q % COLUMN_M);
            let quad = step * STEP_QUADS + k;
            let v = transpose(mat4x4<f32>(
                row_x(m, quad), row_x(m + 1u, quad), row_x(m + 2u, quad), row_x(m + 3u, quad),
            ));
#for j in 0..4
            tile_x[(4u * k + $ju) * COLUMN_M + q % COLUMN_M] = v[$j];
#endfor
        }
        for (var q = lane; q < STEP_QUADS * COLUMN_N; q += LANES) {
            let k = q / COLUMN_N;
            let n = first_n + 4u * (q % COLUMN_N);
            let quad = (step & 1u) * STEP_QUADS + k;
            let b = step >> 1u;
#for j in 0..4
            // Rows beyond the last are computed like it and not written.
            let w$j = block4(load_block(min(n + $ju, params.rows - 1u), b, params.blocks), quad);
#endfor
            let w = transpose(mat4x4<f32>(w0, w1, w2, w3));
#for j in 0..4
            tile_w[(4u * k + $ju) * COLUMN_N + q % COLUMN_N] = w[$j];
#endfor
        }
        workgroupBarrier();
        for (var k = 0u; k < DEPTH; k += 4u) {
#for j in 0..4
            {
#for a in 0..QUADS_M
                let x$a = tile_x[(k + $ju) * COLUMN_M + lane_m + 8u * $au];
#endfor
#for b in 0..QUADS_N
                let w$b = tile_w[(k + $ju) * COLUMN_N + lane_n + 8u * $bu];
#endfor
#for a in 0..QUADS_M
#for i in 0..4
#for b in 0..QUADS_N
                sum$a_$i_$b += x$a[$i] * w$b;
#endfor
#endfor
#endfor
            }
#endfor
        }
        workgroupBarrier();
    }

#for a in 0..QUADS_M
#for i in 0..4
    {
        let m = first_m + 4u * (lane_m + 8u * $au) + $iu;
        if (m < params.m) {
#for b in 0..QUADS_N
            {
                let n = first_n + 4u * (lane_n + 8u * $bu);
                let at = m * params.y_stride + params.first_row + n;
#for j in 0..4
                if (n + $ju < params.rows) {
                    y[at + $ju] = sum$a_$i_$b[$j];
                }
#endfor
            }
#endfor
        }
    }
#endfor
#endfor
}
