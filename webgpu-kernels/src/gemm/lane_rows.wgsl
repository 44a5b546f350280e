// y[m, first_row + n] = sum over k of x[m, k] * w[n, k], for a software device, whose lanes are those of the CPU's vectors.
//
// A load is a loop over the lanes, so the kernel loads little: a lane reads ROWS whole rows of w, and the lanes of a subgroup load
// one quad of x each and broadcast it.
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
@group(0) @binding(4) var<storage, read_write> y: array<f32>;          // [m, y_stride]
#import load_x

// Quads of x that a lane holds of each block.
const SHARE: u32 = (QUADS + SUBGROUP_MIN_SIZE - 1u) / SUBGROUP_MIN_SIZE;

@compute @workgroup_size(WORKGROUP)
fn main(
#import arguments
) {
#import from_arguments
    let group = workgroup_index(workgroups);
    if (group >= params.tiles) {
        return;
    }
    let first_m = group % params.tiles_m * BATCH;
    let first = (group / params.tiles_m * WORKGROUP + invocation.lane) * ROWS;
#for r in 0..ROWS
    // Rows beyond the last repeat it and are not written.
    let row$r = min(first + $ru, params.rows - 1u);
#for m in 0..BATCH
    var sum$m_$r = 0.0;
#endfor
#endfor

    for (var b = 0u; b < params.blocks; b++) {
#for r in 0..ROWS
        let block$r = load_block(row$r, b, params.blocks);
#for m in 0..BATCH
        var part$m_$r = 0.0;
#endfor
#endfor
#for m in 0..BATCH
        var share$m: array<vec4<f32>, SHARE>;
        for (var i = 0u; i < SHARE; i++) {
            let quad = min(i * SUBGROUP_MIN_SIZE + invocation.subgroup_lane, QUADS - 1u);
            share$m[i] = spread(load_x(min(first_m + $mu, params.m - 1u), b * QUADS + quad));
        }
#endfor
#for i in 0..QUADS
        {
#for r in 0..ROWS
            let w$r = raw4(block$r, $iu);
#endfor
#for m in 0..BATCH
            {
                let v = subgroupBroadcast(share$m[$iu / SUBGROUP_MIN_SIZE], $iu % SUBGROUP_MIN_SIZE);
#for r in 0..ROWS
                part$m_$r += dot(w$r, v);
#endfor
            }
#endfor
        }
#endfor
#for r in 0..ROWS
#for m in 0..BATCH
        sum$m_$r += block_scale(block$r) * part$m_$r;
#endfor
#endfor
    }

#for m in 0..BATCH
    if (first_m + $mu < params.m) {
        let at = (first_m + $mu) * params.y_stride + params.first_row + first;
#for r in 0..ROWS
        if (first + $ru < params.rows) {
            y[at + $ru] = sum$m_$r;
        }
#endfor
    }
#endfor
}
