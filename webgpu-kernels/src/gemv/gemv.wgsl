// y[m, first_row + n] = sum over k of x[m, k] * w[n, k], for BATCH rows m.
// With SCALED, of x[m, k] / sqrt(mean_k(..^2) + eps): `squares` holds what the mean is of, in parts.
// With SWIGLU, y[i] = silu(v[i]) * v[rows / 2 + i] of what would be y.
// With ADD, y[n] is added to sum[n], y[n] = sum[n] * norm[n], and squares[n / ROWS] is the sum of ROWS sum[n]^2.
//
// A workgroup computes ROWS outputs n. A lane takes whole blocks along k, STEPS of them at a time so that many loads are
// on their way (with ONCE that is all of them), and uses what it knows of x for all ROWS outputs.
#import invocation
#import unpack

struct Params {
    rows: u32, cols: u32, blocks: u32, first_row: u32, y_stride: u32,
#ifdef SCALED
    parts: u32, eps: f32,
#endif
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q_weight: array<Words>;       // [rows, blocks, ..], see unpack
@group(0) @binding(2) var<storage, read> q_scale: array<u32>;          // [rows, groups], two f16 to a word
#ifdef RAGGED
@group(0) @binding(3) var<storage, read> x: array<f32>;                // [BATCH, cols]
#else
@group(0) @binding(3) var<storage, read> x: array<vec4<f32>>;          // [BATCH, cols / 4]
#endif
@group(0) @binding(4) var<storage, read_write> y: array<f32>;          // [BATCH, y_stride]
#ifdef SCALED
@group(0) @binding(5) var<storage, read> squares: array<vec4<f32>>;    // [parts], and any values to the last quad's end
#endif
#ifdef ADD
@group(0) @binding(5) var<storage, read> norm: array<f32>;             // [rows]
@group(0) @binding(6) var<storage, read_write> sum: array<f32>;        // [rows]
@group(0) @binding(7) var<storage, read_write> squares: array<f32>;    // [rows / ROWS]
#endif
#import load_x
#ifdef SWIGLU
#import activation
#endif

// Sums over k that a workgroup makes.
#ifdef SCALED
const OUTPUTS: u32 = ROWS * BATCH + 1u;
#else
const OUTPUTS: u32 = ROWS * BATCH;
#endif

#ifdef SUBGROUPS
const PARTS: u32 = (WORKGROUP + SUBGROUP_MIN_SIZE - 1u) / SUBGROUP_MIN_SIZE;
#else
const PARTS: u32 = WORKGROUP;
// Lanes per output in the first step of the sum.
const SEGMENTS: u32 = WORKGROUP / OUTPUTS;
#endif
var<workgroup> parts: array<f32, PARTS * OUTPUTS>;                     // [PARTS, OUTPUTS]
#ifdef EPILOGUE
var<workgroup> totals: array<f32, OUTPUTS>;
#endif

#ifdef SCALED
// The sum of a quad of `squares`, zero beyond the last.
fn squares_of(quad: u32) -> f32 {
    let parts = squares[min(quad, (params.parts - 1u) / 4u)];
    let is_part = vec4<u32>(4u * quad) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(params.parts);
    return dot(select(vec4<f32>(0.0), parts, is_part), vec4<f32>(1.0));
}
#endif

@compute @workgroup_size(WORKGROUP)
fn main(workgroups: Workgroups, invocation: Invocation) {
#ifdef SWIGLU
    let inner = params.rows / 2u;
    let first = workgroup_index(workgroups) * (ROWS / 2u);
    if (first >= inner) {
        return;
    }
#else
    let first = workgroup_index(workgroups) * ROWS;
    if (first >= params.rows) {
        return;
    }
#endif
    let lane = invocation.lane;
#for r in 0..ROWS
    // Rows beyond the last are computed like it and not written.
#ifdef SWIGLU
    let row$r = min(first + $ru / 2u, inner - 1u) + $ru % 2u * inner;
#else
    let row$r = min(first + $ru, params.rows - 1u);
#endif
#for m in 0..BATCH
    var sum$m_$r = 0.0;
#endfor
#endfor
#ifdef SCALED
    var square = 0.0;
#ifdef WIDE_BLOCKS
    for (var i = lane; 4u * i < params.parts; i += WORKGROUP) {
        square += squares_of(i);
    }
#endif
#endif

#ifdef ONCE
    let tile = 0u;
    {
#else
    for (var tile = 0u; tile < params.blocks; tile += STEPS * WORKGROUP) {
#endif
#for s in 0..STEPS
        // A lane beyond the last block loads that one and multiplies it by zero.
        let at$s = tile + $su * WORKGROUP + lane;
        let b$s = min(at$s, params.blocks - 1u);
#for r in 0..ROWS
        let block$s_$r = load_block(row$r, b$s, params.blocks);
#for m in 0..BATCH
        var part$s_$m_$r = 0.0;
#endfor
#endfor
#ifdef SCALED
#ifndef WIDE_BLOCKS
        // As many blocks as there are quads of parts, or more. No loop of their own: it would end before w is asked for.
        let square$s = squares_of(at$s);
#endif
#endif
#endfor
#for s in 0..STEPS
#for i in 0..QUADS
        {
#for m in 0..BATCH
            let x$m = spread(load_x($mu, at$s * QUADS + $iu));
#endfor
#for r in 0..ROWS
            {
                let w = raw4(block$s_$r, $iu);
#for m in 0..BATCH
#for j in 0..4
                part$s_$m_$r = fma(w[$j], x$m[$j], part$s_$m_$r);
#endfor
#endfor
            }
#endfor
        }
#endfor
#for r in 0..ROWS
#for m in 0..BATCH
        sum$m_$r += block_scale(block$s_$r) * part$s_$m_$r;
#endfor
#endfor
#ifdef SCALED
#ifndef WIDE_BLOCKS
        square += square$s;
#endif
#endif
#endfor
    }

#ifdef SUBGROUPS
#for m in 0..BATCH
#for r in 0..ROWS
    sum$m_$r = subgroupAdd(sum$m_$r);
#endfor
#endfor
#ifdef SCALED
    square = subgroupAdd(square);
#endif
    let slot = invocation.subgroup;
    if (invocation.subgroup_lane == 0u) {
#else
    let slot = lane;
    {
#endif
#for m in 0..BATCH
#for r in 0..ROWS
        parts[slot * OUTPUTS + $mu * ROWS + $ru] = sum$m_$r;
#endfor
#endfor
#ifdef SCALED
        parts[slot * OUTPUTS + ROWS * BATCH] = square;
#endif
    }
    workgroupBarrier();
#ifdef SUBGROUPS
    let count = invocation.subgroups;
#else
    // SEGMENTS lanes per output add up PARTS / SEGMENTS parts each and put the result over the first of them.
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
    var total = 0.0;
    if (lane < OUTPUTS) {
        for (var i = 0u; i < count; i++) {
            total += parts[i * OUTPUTS + lane];
        }
    }
#ifdef EPILOGUE
#ifdef ADD
    let n = first + lane;
    if (lane < OUTPUTS) {
        var square = 0.0;
        if (n < params.rows) {
            let value = sum[n] + total;
            sum[n] = value;
            y[n] = value * norm[n];
            square = value * value;
        }
        totals[lane] = square;
    }
    workgroupBarrier();
    if (lane == 0u) {
        var square = 0.0;
#for r in 0..ROWS
        square += totals[$r];
#endfor
        squares[first / ROWS] = square;
    }
#else
    if (lane < OUTPUTS) {
        totals[lane] = total;
    }
    workgroupBarrier();
    let factor = 1.0 / sqrt(totals[ROWS * BATCH] / f32(params.cols) + params.eps);
#ifdef SWIGLU
    let n = first + lane;
    if (lane < ROWS / 2u && n < inner) {
        let gate = factor * totals[2u * lane];
        y[n] = activation(gate) * factor * totals[2u * lane + 1u];
    }
#else
    let n = first + lane;
    if (lane < ROWS && n < params.rows) {
        y[params.first_row + n] = factor * total;
    }
#endif
#endif
#else
    if (lane < OUTPUTS) {
        let n = first + lane % ROWS;
        if (n < params.rows) {
            y[(lane / ROWS) * params.y_stride + params.first_row + n] = total;
        }
    }
#endif
}
