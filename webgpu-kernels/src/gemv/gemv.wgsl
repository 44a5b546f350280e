// y[m, first_row + n] = sum over k of x[m, k] * w[n, k], for BATCH rows m.
// With SCALED, of x[m, k] / sqrt(mean_k(..^2) + eps): `squares` holds what the mean is of, in parts.
// With SWIGLU, y[i] = silu(v[i]) * v[rows / 2 + i] of what would be y.
// With ADD, y[n] is added to sum[n], y[n] = sum[n] * norm[n], and squares[g] is the sum of workgroup g's sum[n]^2.
// With ROPE, the rows are those of queries, keys and values, head by head: queries, turned, go to y, keys, turned, and
// values to the cache at `position`.
//
// A team of TEAM lanes computes ROWS outputs n: a cluster (invocation.wgsl) with TEAMS, which needs no barrier, or the
// workgroup. With SIDE_BY_SIDE the lanes of a cluster have them all in the end, with TOGETHER by exchanging several sums at
// once. A lane
// takes whole blocks along k, STEPS of them at a time so that many loads are on their way (with ONCE that is all of them;
// with EXACT no lane has fewer), and uses what it knows of x for all ROWS outputs. With SHARED_X all of x comes from
// workgroup memory, in an order in which neighbouring lanes find neighbouring quads. With INTEGER a lane multiplies codes
// and x as integers, see fixed_point.wgsl.
#import invocation
#import unpack
#ifdef INTEGER
#import fixed_point
#endif
#ifdef SIDE_BY_SIDE
#import subgroup_sums
#endif

struct Params {
    rows: u32, cols: u32, blocks: u32, first_row: u32, y_stride: u32,
#ifdef SCALED
    parts: u32, eps: f32,
#endif
#ifdef ROPE
    heads: u32, kv_heads: u32, head_dim: u32, position: u32, capacity: u32, kv_row: u32,
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
@group(0) @binding(7) var<storage, read_write> squares: array<f32>;    // [workgroups]
#endif
#ifdef ROPE
@group(0) @binding(6) var<storage, read> rope: array<vec2<f32>>;       // [positions, head_dim / 2]
@group(0) @binding(7) var<storage, read_write> k_cache: array<u32>;    // [kv_heads, capacity, kv_row], see kv.wgsl
@group(0) @binding(8) var<storage, read_write> v_cache: array<u32>;    // [kv_heads, capacity, kv_row], see kv.wgsl
#endif
#import load_x
#ifdef KV_F16
#import f16_pair
#endif
#ifdef SWIGLU
#import activation
#endif

#ifdef TEAMS
const TEAM: u32 = SUBGROUP_MIN_SIZE;
#else
const TEAM: u32 = WORKGROUP;
#endif

// Sums over k that a team makes.
#ifdef SCALED
const OUTPUTS: u32 = ROWS * BATCH + 1u;
#else
const OUTPUTS: u32 = ROWS * BATCH;
#endif

#ifdef TEAMS
#ifdef ADD
var<workgroup> team_squares: array<f32, WORKGROUP / TEAM>;
#endif
#else
#ifdef SUBGROUPS
const PARTS: u32 = (WORKGROUP + SUBGROUP_MIN_SIZE - 1u) / SUBGROUP_MIN_SIZE;
#else
const PARTS: u32 = WORKGROUP;
// Lanes per output in the first step of the sum.
const SEGMENTS: u32 = WORKGROUP / OUTPUTS;
#endif
var<workgroup> parts: array<f32, PARTS * OUTPUTS>;                     // [PARTS, OUTPUTS]
#ifndef SIDE_BY_SIDE
#ifdef EPILOGUE
var<workgroup> totals: array<f32, OUTPUTS>;
#endif
#ifdef ROPE
var<workgroup> turned: array<f32, ROWS>;
#endif
#endif
#endif

#ifdef SHARED_X
var<workgroup> x_tile: array<vec4<f32>, QUADS * X_BLOCKS>;             // [QUADS, X_BLOCKS], spread
#endif

#ifdef SCALED
// The sum of a quad of `squares`, zero beyond the last.
fn squares_of(quad: u32) -> f32 {
    let parts = squares[min(quad, (params.parts - 1u) / 4u)];
    let is_part = vec4<u32>(4u * quad) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(params.parts);
    return dot(select(vec4<f32>(0.0), parts, is_part), vec4<f32>(1.0));
}
#endif

// Quad i of block `at` of x; zero beyond the last column.
fn x_quad(m: u32, at: u32, i: u32) -> vec4<f32> {
#ifdef EXACT
    return x[m * (params.cols / 4u) + at * QUADS + i];
#else
    return load_x(m, at * QUADS + i);
#endif
}

// The same as `raw4` wants it.
fn x_of(m: u32, at: u32, i: u32) -> vec4<f32> {
#ifdef SHARED_X
#ifdef EXACT
    return x_tile[i * X_BLOCKS + at];
#else
    return select(vec4<f32>(0.0), x_tile[i * X_BLOCKS + min(at, X_BLOCKS - 1u)], at < X_BLOCKS);
#endif
#else
    return spread(x_quad(m, at, i));
#endif
}

@compute @workgroup_size(WORKGROUP)
fn main(
#import arguments
) {
#import from_arguments
    let group = workgroup_index(workgroups);
#ifdef PAIRS
    const outputs = ROWS / 2u;
    let inner = params.rows / 2u;
#else
    const outputs = ROWS;
    let inner = params.rows;
#endif
    if (group * (WORKGROUP / TEAM) * outputs >= inner) {
        return;
    }
#ifdef TEAMS
    let lane = invocation.cluster_lane;
    let first = (group * (WORKGROUP / TEAM) + invocation.cluster) * outputs;
#else
    let lane = invocation.lane;
    let first = group * outputs;
#endif
#ifdef ROPE
    let reach = params.head_dim / 2u;
#endif
#for r in 0..ROWS
    // Rows beyond the last are computed like it and not written.
#ifdef SWIGLU
    let row$r = min(first + $ru / 2u, inner - 1u) + $ru % 2u * inner;
#else
#ifdef ROPE
    let pair$r = min(first + $ru / 2u, inner - 1u);
    let row$r = pair$r / reach * params.head_dim + pair$r % reach + $ru % 2u * reach;
#else
    let row$r = min(first + $ru, params.rows - 1u);
#endif
#endif
#for m in 0..BATCH
    var sum$m_$r = 0.0;
#endfor
#endfor
    // What comes after the sums is asked for before them.
#ifdef ADD
    let n = first + lane;
    let n_known = min(first + min(lane, ROWS - 1u), params.rows - 1u);
    let sum_before = sum[n_known];
    let norm_here = norm[n_known];
#endif
#ifdef ROPE
    let pair = min(first + min(lane, ROWS - 1u) / 2u, inner - 1u);
    let turn = rope[params.position * reach + pair % reach];
#endif
#ifdef SCALED
#for s in 0..SQUARES
    let square$s = squares_of($su * TEAM + lane);
#endfor
#endif

#ifdef SHARED_X
#ifndef ONCE
    for (var quad = invocation.lane; quad < QUADS * X_BLOCKS; quad += WORKGROUP) {
        x_tile[quad % QUADS * X_BLOCKS + quad / QUADS] = spread(load_x(0u, quad));
    }
    workgroupBarrier();
#endif
#endif

#ifdef ONCE
    let tile = 0u;
    {
#else
    for (var tile = 0u; tile < params.blocks; tile += STEPS * TEAM) {
#endif
#for s in 0..STEPS
        let at$s = tile + $su * TEAM + lane;
#ifdef EXACT
        let b$s = at$s;
#else
        // A lane beyond the last block loads that one and multiplies it by zero.
        let b$s = min(at$s, params.blocks - 1u);
#endif
#for r in 0..ROWS
        let block$s_$r = load_block(row$r, b$s, params.blocks);
#for m in 0..BATCH
        var part$s_$m_$r = 0.0;
#endfor
#endfor
#endfor
#ifdef SHARED_X
#ifdef ONCE
        for (var quad = invocation.lane; quad < QUADS * X_BLOCKS; quad += WORKGROUP) {
            x_tile[quad % QUADS * X_BLOCKS + quad / QUADS] = spread(load_x(0u, quad));
        }
        workgroupBarrier();
#endif
#endif
#for s in 0..STEPS
#ifdef INTEGER
        {
            var most = vec4<f32>(0.0);
#for w in 0..X_WORDS
            let left$w = x_quad(0u, at$s, 2u * $wu);
            let right$w = x_quad(0u, at$s, 2u * $wu + 1u);
            most = max(most, max(abs(left$w), abs(right$w)));
#endfor
            let unit = unit_of(most);
            let per_unit = 1.0 / unit;
            // What the codes have too much is taken off before.
            var start = vec2<i32>(0);
#for w in 0..X_WORDS
            let planes$w = planes_of(left$w, right$w, per_unit);
            start += plane_sums(planes$w);
#endfor
            start = vec2<i32>(FLOAT_BITS) - i32(MAX_INT) * start;
#for r in 0..ROWS
            {
                var products = start;
#for w in 0..X_WORDS
                products += plane_products(code_bytes(block$s_$r, $wu), planes$w);
#endfor
                part$s_0_$r = unit * joined(products);
            }
#endfor
        }
#else
#for i in 0..QUADS
        {
#for m in 0..BATCH
            let x$m = x_of($mu, at$s, $iu);
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
#endif
#for r in 0..ROWS
#for m in 0..BATCH
        sum$m_$r += block_scale(block$s_$r) * part$s_$m_$r;
#endfor
#endfor
#endfor
    }
#ifdef SCALED
    var square = 0.0;
#for s in 0..SQUARES
    square += square$s;
#endfor
#endif

#ifdef SUBGROUPS
#ifdef TOGETHER
    // Of all outputs at once: output `lane % ROWS` ends in a lane.
#ifdef EIGHT
    var total = eight_sums(
        vec4<f32>(sum0_0, sum0_1, sum0_2, sum0_3), vec4<f32>(sum0_4, sum0_5, sum0_6, sum0_7), invocation.cluster_lane,
    );
#else
    var total = four_sums(vec4<f32>(sum0_0, sum0_1, sum0_2, sum0_3), invocation.cluster_lane);
#endif
#else
#for m in 0..BATCH
#for r in 0..ROWS
#ifdef TEAMS
    sum$m_$r = cluster_sum(sum$m_$r);
#else
    sum$m_$r = subgroupAdd(sum$m_$r);
#endif
#endfor
#endfor
#endif
#ifdef SCALED
#ifdef SIDE_BY_SIDE
    square = cluster_sum(square);
#else
    square = subgroupAdd(square);
#endif
#endif
#endif

#ifdef TEAMS
#ifndef TOGETHER
    // Lane m * ROWS + r goes on with that sum.
    var total = 0.0;
#for m in 0..BATCH
#for r in 0..ROWS
    total = select(total, sum$m_$r, lane == $mu * ROWS + $ru);
#endfor
#endfor
#endif
#ifdef SCALED
    total /= sqrt(square / f32(params.cols) + params.eps);
#endif
#else
#ifdef TOGETHER
    let output = invocation.cluster_lane % ROWS;
    if (invocation.cluster_lane < ROWS) {
        parts[invocation.cluster * OUTPUTS + output] = total;
    }
#ifdef SCALED
    if (invocation.cluster_lane == 0u) {
        parts[invocation.cluster * OUTPUTS + ROWS] = square;
    }
    square = 0.0;
#endif
    workgroupBarrier();
    // Each cluster adds all up, so that lanes of one have the outputs side by side.
    total = 0.0;
    for (var i = 0u; i < PARTS; i++) {
        total += parts[i * OUTPUTS + output];
#ifdef SCALED
        square += parts[i * OUTPUTS + ROWS];
#endif
    }
#ifdef SCALED
    total /= sqrt(square / f32(params.cols) + params.eps);
#endif
#else
#ifdef SUBGROUPS
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
#ifdef SCALED
    if (lane < OUTPUTS) {
        totals[lane] = total;
    }
    workgroupBarrier();
    let factor = 1.0 / sqrt(totals[ROWS * BATCH] / f32(params.cols) + params.eps);
    total *= factor;
#ifdef PAIRS
    let other = factor * totals[min(lane ^ 1u, ROWS - 1u)];
#endif
#endif
#endif
#endif
#ifdef PAIRS
#ifdef SIDE_BY_SIDE
    let other = subgroupShuffleXor(total, 1u);
#endif
#endif

#ifdef ADD
    var square = 0.0;
    if (lane < ROWS && n < params.rows) {
        let value = sum_before + total;
        sum[n] = value;
        y[n] = value * norm_here;
        square = value * value;
    }
#ifdef TEAMS
    square = cluster_sum(square);
    if (lane == 0u) {
        team_squares[invocation.cluster] = square;
    }
    workgroupBarrier();
    if (invocation.lane == 0u) {
        square = team_squares[0];
        for (var t = 1u; t < WORKGROUP / TEAM; t++) {
            square += team_squares[t];
        }
        squares[group] = square;
    }
#else
#ifdef TOGETHER
    square = cluster_sum(square);
    if (lane == 0u) {
        squares[group] = square;
    }
#else
    if (lane < ROWS) {
        totals[lane] = square;
    }
    workgroupBarrier();
    if (lane == 0u) {
        square = 0.0;
#for r in 0..ROWS
        square += totals[$r];
#endfor
        squares[group] = square;
    }
#endif
#endif
#else
#ifdef SWIGLU
    let n = first + lane / 2u;
    if (lane % 2u == 0u && lane < ROWS && n < inner) {
        y[n] = activation(total) * other;
    }
#else
#ifdef ROPE
    let head = pair / reach;
    let is_high = lane % 2u == 1u;
    let is_turned = head < params.heads + params.kv_heads;
    let value = select(total, total * turn.x + select(-other, other, is_high) * turn.y, is_turned);
#ifdef SIDE_BY_SIDE
    let next = subgroupShuffleXor(value, 2u);
#else
    if (lane < ROWS) {
        turned[lane] = value;
    }
    workgroupBarrier();
    let next = turned[min(lane ^ 2u, ROWS - 1u)];
#endif
    if (lane < ROWS && first + lane / 2u < inner) {
        let at = pair % reach + select(0u, reach, is_high);
        if (head < params.heads) {
            y[head * params.head_dim + at] = value;
        } else {
            let kv_head = head - params.heads - select(params.kv_heads, 0u, is_turned);
            let to = (kv_head * params.capacity + params.position) * params.kv_row;
#ifdef KV_F16
            // Two neighbours are a word, which the first of them stores.
            let word = to_pair(vec2<f32>(value, next));
            let word_at = to + at / 2u;
            let is_first = lane / 2u % 2u == 0u;
#else
            let word = bitcast<u32>(value);
            let word_at = to + at;
            let is_first = true;
#endif
            if (is_first && is_turned) {
                k_cache[word_at] = word;
            } else if (is_first) {
                v_cache[word_at] = word;
            }
        }
    }
#else
    if (lane < ROWS * BATCH) {
        let n = first + lane % ROWS;
        if (n < params.rows) {
            y[(lane / ROWS) * params.y_stride + params.first_row + n] = total;
        }
    }
#endif
#endif
#endif
}
