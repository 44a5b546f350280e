// y[m, first_row + n] = sum over k of x[m, k] * w[n, k], for BATCH rows m.
// A workgroup computes ROWS outputs n. A lane takes whole blocks along k, one load of 16 bytes per row, and uses what it
// knows of x for all ROWS of them.
#import invocation
#import unpack

struct Params { rows: u32, cols: u32, blocks: u32, first_row: u32, y_stride: u32 }

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q_weight: array<vec4<u32>>;   // [rows, blocks, ..], see unpack
@group(0) @binding(2) var<storage, read> q_scale: array<u32>;          // [rows, blocks], two f16 to a word
#ifdef RAGGED
@group(0) @binding(3) var<storage, read> x: array<f32>;                // [BATCH, cols]
#else
@group(0) @binding(3) var<storage, read> x: array<vec4<f32>>;          // [BATCH, cols / 4]
#endif
@group(0) @binding(4) var<storage, read_write> y: array<f32>;          // [BATCH, y_stride]
#import load_x

const OUTPUTS: u32 = ROWS * BATCH;

#ifdef STAGED
// x of WORKGROUP blocks. One quad of padding per block: the lanes of a subgroup read different banks.
const STRIDE: u32 = QUADS + 1u;
var<workgroup> staged: array<vec4<f32>, WORKGROUP * STRIDE>;
#endif

#ifdef SUBGROUPS
const PARTS: u32 = WORKGROUP / SUBGROUP_MIN_SIZE;
#else
const PARTS: u32 = WORKGROUP;
// Lanes per output in the first step of the sum.
const SEGMENTS: u32 = WORKGROUP / OUTPUTS;
#endif
var<workgroup> parts: array<f32, PARTS * OUTPUTS>;                     // [PARTS, OUTPUTS]

@compute @workgroup_size(WORKGROUP)
fn main(invocation: Invocation) {
    let first = workgroup_index(invocation) * ROWS;
    if (first >= params.rows) {
        return;
    }
    let lane = invocation.lane;
#for r in 0..ROWS
    // Rows beyond the last are computed like it and not written.
    let row$r = min(first + $ru, params.rows - 1u);
#for m in 0..BATCH
    var sum$m_$r = 0.0;
#endfor
#endfor

    for (var tile = 0u; tile < params.blocks; tile += WORKGROUP) {
        // A lane beyond the last block loads that one and multiplies it by zero.
        let b = min(tile + lane, params.blocks - 1u);
#for r in 0..ROWS
        let block$r = load_block(row$r, b, params.blocks);
#for m in 0..BATCH
        var part$m_$r = 0.0;
#endfor
#endfor
#ifdef STAGED
        for (var i = 0u; i < QUADS; i++) {
            let quad = i * WORKGROUP + lane;
            staged[(quad / QUADS) * STRIDE + quad % QUADS] = spread(load_x(0u, tile * QUADS + quad));
        }
        workgroupBarrier();
#endif
#for i in 0..QUADS
        {
#for r in 0..ROWS
            let w$r = raw4(block$r, $iu);
#endfor
#for m in 0..BATCH
            {
#ifdef STAGED
                let v = staged[lane * STRIDE + $iu];
#else
                let v = spread(load_x($mu, (tile + lane) * QUADS + $iu));
#endif
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
#ifdef STAGED
        workgroupBarrier();
#endif
    }

#ifdef SUBGROUPS
#for m in 0..BATCH
#for r in 0..ROWS
    sum$m_$r = subgroupAdd(sum$m_$r);
#endfor
#endfor
    if (invocation.subgroup_lane == 0u) {
#for m in 0..BATCH
#for r in 0..ROWS
        parts[invocation.subgroup * OUTPUTS + $mu * ROWS + $ru] = sum$m_$r;
#endfor
#endfor
    }
    workgroupBarrier();
    let count = invocation.subgroups;
#else
#for m in 0..BATCH
#for r in 0..ROWS
    parts[lane * OUTPUTS + $mu * ROWS + $ru] = sum$m_$r;
#endfor
#endfor
    workgroupBarrier();
    // SEGMENTS lanes per output add up OUTPUTS parts each and put the result over the first of them.
    let segment = lane / OUTPUTS;
    if (segment < SEGMENTS) {
        var part = 0.0;
        for (var i = segment; i < PARTS; i += SEGMENTS) {
            part += parts[i * OUTPUTS + lane % OUTPUTS];
        }
        parts[lane] = part;
    }
    workgroupBarrier();
    let count = SEGMENTS;
#endif
    if (lane < OUTPUTS) {
        var total = 0.0;
        for (var i = 0u; i < count; i++) {
            total += parts[i * OUTPUTS + lane];
        }
        let n = first + lane % ROWS;
        if (n < params.rows) {
            y[(lane / ROWS) * params.y_stride + params.first_row + n] = total;
        }
    }
}
