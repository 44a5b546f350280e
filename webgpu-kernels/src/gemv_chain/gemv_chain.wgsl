// The end of a decoder's layer for one row, products that each need the whole of the one before, in one dispatch:
//   0  u[n] = sum[n] + sum over k of x[k] * w0[n, k]
//   1  v[i] = silu(g[i]) * g[rows / 2 + i], where g[n] = sum over k of normed(u * norm0)[k] * w1[n, k]
//   2  sum[n] = u[n] + sum over k of v[k] * w2[n, k]
// and with ATTENTION, what the next layer begins with:
//   3  queries, keys and values, sum over k of normed(sum * norm2)[k] * w3[n, k], the former two rotated
//   4  what the queries find, among the keys of the cache and this one, which joins them; with several ranges of keys, parts of it
//   5  and with these, what they come to
// or else y = sum * norm2, and squares, whose total is that of sum^2. normed(a * norm) is a * norm / sqrt(mean of a^2 + eps).
// START has stages 3 to 5 alone, with x for sum: the beginning of the first layer.
//
// A workgroup takes a number, the next one, from a counter in `links`. The first numbers are stage 0, the next ones stage 1, and so on.
// A workgroup of a later stage loads its first weights, then polls `links` for the outputs of the stage before. Workgroups with smaller
// numbers have started, because they took their numbers, so nothing is assumed of the order in which workgroups start. What is assumed
// is that a workgroup that has started goes on while others poll: forward progress, see `Caps`. While workgroups wait the memory is
// busy with weights, which it is not between dispatches. On a device without forward progress each stage is a dispatch of its own: numbers go
// on from one to the next, and each finds all its inputs.
//
// A value in `links` is PENDING until it is published, so that it needs no flag beside it, and no order between memory operations. A
// stage's inputs lie where neighboring lanes read neighbors: value 16 * b + i at i * blocks + b. Before them are two words, a flag and
// the counter, each in a cache line of its own. There are two sets of links, which alternate: each dispatch makes the counter and the
// values of the other set PENDING again.
//
// A workgroup that polls too often stops waiting and sets the flag EXPIRED. The other workgroups see it and stop too. The results are wrong
// then. The next dispatch copies the flag to its own set. The host reads it with the results, and computes them again without waiting.
//
// The products are here, attention is in attention.wgsl. A workgroup of PARTS clusters has ROWS outputs at a time, for `passes`
// times; a lane takes STEPS half groups of each, and asks for the next before it multiplies those at hand. What a stage takes in is
// made fixed-point once, see fixed_point.wgsl.
#import invocation
#import unpack
#import fixed_point
#import subgroup_sums
#import activation
#ifdef ATTENTION
#import team_attention
#endif

struct Params {
#for t in 0..4
    rows$t: u32, blocks$t: u32, groups$t: u32, passes$t: u32,
#endfor
    eps: f32, most_polls: u32, stale_words: u32,
    heads: u32, kv_heads: u32, position: u32, capacity: u32,
    begin: u32, splits: u32, split_keys: u32, groups4: u32, groups5: u32, scale: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
#ifdef START
@group(0) @binding(1) var<storage, read> q_weight3: array<Words>;             // [rows3, blocks3], see unpack
@group(0) @binding(2) var<storage, read> q_scale3: array<u32>;                // [rows3, blocks3 / 2], two f16 to a word
@group(0) @binding(3) var<storage, read> x: array<vec4<f32>>;                 // [4 * blocks3]
@group(0) @binding(4) var<storage, read> norm2: array<vec4<f32>>;             // [4 * blocks3]
@group(0) @binding(5) var<storage, read_write> links: array<atomic<u32>>;     // flag, counter, outputs of stages: see `input1` and so on
@group(0) @binding(6) var<storage, read_write> stale: array<atomic<u32>>;     // the other set
@group(0) @binding(7) var<storage, read> rope: array<vec2<f32>>;              // [positions, HEAD_DIM / 2]
@group(0) @binding(8) var<storage, read_write> attended: array<vec4<f32>>;    // [heads, HEAD_DIM / 4]
@group(0) @binding(9) var<storage, read_write> k_cache: array<Stored8>;       // [kv_heads, capacity] rows, see kv.wgsl
@group(0) @binding(10) var<storage, read_write> v_cache: array<Stored8>;      // [kv_heads, capacity] rows
#else
@group(0) @binding(1) var<storage, read> q_weight0: array<Words>;             // [rows0, blocks0], see unpack
@group(0) @binding(2) var<storage, read> q_scale0: array<u32>;                // [rows0, blocks0 / 2], two f16 to a word
@group(0) @binding(3) var<storage, read> q_weight1: array<Words>;             // [rows1, blocks1]
@group(0) @binding(4) var<storage, read> q_scale1: array<u32>;                // [rows1, blocks1 / 2]
@group(0) @binding(5) var<storage, read> q_weight2: array<Words>;             // [rows2, blocks2]
@group(0) @binding(6) var<storage, read> q_scale2: array<u32>;                // [rows2, blocks2 / 2]
@group(0) @binding(7) var<storage, read> x: array<vec4<f32>>;                 // [4 * blocks0]
@group(0) @binding(8) var<storage, read> norm0: array<vec4<f32>>;             // [4 * blocks1]
@group(0) @binding(9) var<storage, read> norm2: array<vec4<f32>>;             // [rows2 / 4]
@group(0) @binding(10) var<storage, read_write> sum: array<f32>;              // [rows2]
@group(0) @binding(11) var<storage, read_write> links: array<atomic<u32>>;    // as above
@group(0) @binding(12) var<storage, read_write> stale: array<atomic<u32>>;
#ifdef ATTENTION
@group(0) @binding(13) var<storage, read> q_weight3: array<Words>;            // as above
@group(0) @binding(14) var<storage, read> q_scale3: array<u32>;
@group(0) @binding(15) var<storage, read> rope: array<vec2<f32>>;
@group(0) @binding(16) var<storage, read_write> attended: array<vec4<f32>>;
@group(0) @binding(17) var<storage, read_write> k_cache: array<Stored8>;
@group(0) @binding(18) var<storage, read_write> v_cache: array<Stored8>;
#else
@group(0) @binding(13) var<storage, read_write> y: array<f32>;                // [rows2]
@group(0) @binding(14) var<storage, read_write> squares: array<f32>;          // [groups2]
#endif
#endif

// Outputs, and a sum of squares.
const COLUMNS: u32 = 9u;
var<workgroup> parts: array<f32, 2u * PARTS * COLUMNS>;                       // [parity of the pass, PARTS, COLUMNS]

var<workgroup> ticket: u32;

// Whether this lane has stopped waiting. Its results are wrong then.
var<private> has_expired: bool = false;

// Whether to poll once more, after so many polls. A poll takes about a microsecond.
fn may_poll(polls: u32) -> bool {
    let is_late = polls >= params.most_polls;
    // Check whether another workgroup has expired. If each waited for its own bound, the driver would reset the device.
    if (!has_expired && (is_late || polls % POLLS_TO_CHECK == POLLS_TO_CHECK - 1u)) {
        has_expired = atomicMax(&links[EXPIRED], u32(is_late)) != 0u || is_late;
    }
    return !has_expired;
}

// Makes a value known to the stages behind. It may be a NaN, but not the one that is PENDING.
fn publish(at: u32, value: f32) {
    atomicStore(&links[at], min(bitcast<u32>(value), PENDING - 1u));
}

// Where in `links` stages find value 0 of what they take in.
fn input1() -> u32 {
    return VALUES;
}

fn input2() -> u32 {
    return VALUES + 16u * params.blocks1;
}

fn input3() -> u32 {
    return VALUES + 16u * (params.blocks1 + params.blocks2);
}

// Queries, keys and values, heads of each: dim 8 * e + i at i * EIGHTS + e.
fn input4() -> u32 {
#ifdef START
    return VALUES;
#else
    return VALUES + 16u * (params.blocks1 + params.blocks2 + params.blocks3);
#endif
}

// Of each range, heads; and behind them of each range m of each head; and l. See `Found`.
fn input5() -> u32 {
    return input4() + params.rows3;
}

#ifndef START
fn norm_of1(quad: u32) -> vec4<f32> {
    return norm0[quad];
}
#endif

fn norm_of3(quad: u32) -> vec4<f32> {
    return norm2[quad];
}


#for t in FIRST..STAGES
// Row r of rows `at` of stage $t. Rows beyond the last are computed like it and not written.
fn row$t(at: u32, r: u32) -> u32 {
#ifdef ADD$t
    return min(at * ROWS$t + r, params.rows$t - 1u);
#else
    let inner = params.rows$t / 2u;
    let pair = min(at * (ROWS$t / 2u) + r / 2u, inner - 1u);
#ifdef ROPE$t
    let reach = HEAD_DIM / 2u;
    return pair / reach * HEAD_DIM + pair % reach + r % 2u * reach;
#else
    return pair + r % 2u * inner;
#endif
#endif
}

// Stage $t, workgroup `group` of it.
fn stage$t(group: u32, invocation: Invocation) {
    let lane = invocation.lane;
    var at = group * params.passes$t;
    let end = at + params.passes$t;
#for s in 0..STEPS$t
    let block$s = $su * WORKGROUP + lane;
#ifdef EXACT$t
    let b$s = block$s;
#else
    // A lane beyond the last block loads that one and multiplies it by zero.
    let b$s = min(block$s, params.blocks$t - 1u);
#endif
    let is_odd$s = (b$s & 2u) != 0u;
#endfor
#for r in 0..ROWS$t
    let first$r = row$t(at, $ru) * params.blocks$t;
#for s in 0..STEPS$t
    var codes$s_$r = q_weight$t[first$r + b$s];
    var scales$s_$r = q_scale$t[(first$r + b$s) >> 2u];
#endfor
#endfor
#ifdef FIRST$t
    for (var i = group * WORKGROUP + lane; i < params.stale_words; i += params.groups$t * WORKGROUP) {
        atomicStore(&stale[TICKET + i], PENDING);
    }
#endif
#ifdef NORMED$t
#for s in 0..STEPS$t
#for i in 0..4
    let norm$s_$i = norm_of$t(4u * b$s + $iu);
#endfor
#endfor
#endif
#ifdef FIRST$t
#for s in 0..STEPS$t
#for i in 0..4
    var quad$s_$i = x[4u * b$s + $iu];
#endfor
#endfor
#else
    // Poll one word in sixteen; when it is there, so are most others.
    let input = input$t() + 15u * params.blocks$t + b0;
    for (var polls = 0u; may_poll(polls); polls++) {
        if (atomicLoad(&links[input]) != PENDING) {
            break;
        }
    }
#for s in 0..STEPS$t
#for i in 0..4
    var quad$s_$i = vec4<f32>(0.0);
#endfor
    for (var polls = 0u; may_poll(polls); polls++) {
        var most = 0u;
#for i in 0..4
        {
            let found = input$t() + 4u * $iu * params.blocks$t + b$s;
            let bits = vec4<u32>(
                atomicLoad(&links[found]),
                atomicLoad(&links[found + params.blocks$t]),
                atomicLoad(&links[found + 2u * params.blocks$t]),
                atomicLoad(&links[found + 3u * params.blocks$t]),
            );
            most = max(most, max(max(bits.x, bits.y), max(bits.z, bits.w)));
            quad$s_$i = bitcast<vec4<f32>>(bits);
        }
#endfor
        if (most != PENDING) {
            break;
        }
    }
#endfor
#endif
    var square = 0.0;
#for s in 0..STEPS$t
    var most$s = vec4<f32>(0.0);
#for i in 0..4
#ifndef EXACT$t
    quad$s_$i = select(vec4<f32>(0.0), quad$s_$i, block$s == b$s);
#endif
#ifdef NORMED$t
    square += dot(quad$s_$i, quad$s_$i);
    quad$s_$i *= norm$s_$i;
#endif
    most$s = max(most$s, abs(quad$s_$i));
#endfor
    let unit$s = unit_of(most$s);
    let left$s = planes_of(quad$s_0, quad$s_1, 1.0 / unit$s);
    let right$s = planes_of(quad$s_2, quad$s_3, 1.0 / unit$s);
    // What the codes have too much is taken off before.
    let start$s = vec2<i32>(FLOAT_BITS) - i32(MAX_INT) * (plane_sums(left$s) + plane_sums(right$s));
#endfor
#ifdef NORMED$t
    square = cluster_sum(square);
#endif

    for (; at < end; at++) {
#ifdef ADD$t
        let n = at * ROWS$t + lane;
        let n_known = min(at * ROWS$t + min(lane, ROWS$t - 1u), params.rows$t - 1u);
#ifdef FIRST$t
        let before = sum[n_known];
#else
        // Published before the inputs of this stage were; without fences it may still be seen later.
        var bits = PENDING;
        for (var polls = 0u; bits == PENDING && may_poll(polls); polls++) {
            bits = atomicLoad(&links[input1() + n_known % 16u * params.blocks1 + n_known / 16u]);
        }
        let before = bitcast<f32>(bits);
#endif
#endif
#for r in 0..ROWS$t
#for s in 0..STEPS$t
        var next_codes$s_$r = codes$s_$r;
        var next_scales$s_$r = scales$s_$r;
#endfor
#endfor
        if (at + 1u < end) {
#for r in 0..ROWS$t
            {
                let first = row$t(at + 1u, $ru) * params.blocks$t;
#for s in 0..STEPS$t
                next_codes$s_$r = q_weight$t[first + b$s];
                next_scales$s_$r = q_scale$t[(first + b$s) >> 2u];
#endfor
            }
#endfor
        }
#for r in 0..ROWS$t
        var sum$r = 0.0;
#for s in 0..STEPS$t
        {
            let products = start$s + plane_products(bytes_of(codes$s_$r.x), left$s)
                + plane_products(bytes_of(codes$s_$r.y), right$s);
            let pair = unpack2x16float(scales$s_$r);
            sum$r += select(pair.x, pair.y, is_odd$s) * unit$s * joined(products);
        }
#endfor
#endfor
#for r in 0..ROWS$t
#for s in 0..STEPS$t
        codes$s_$r = next_codes$s_$r;
        scales$s_$r = next_scales$s_$r;
#endfor
#endfor
#ifdef EIGHT$t
        var total = eight_sums(
            vec4<f32>(sum0, sum1, sum2, sum3), vec4<f32>(sum4, sum5, sum6, sum7), invocation.cluster_lane,
        );
#else
        var total = four_sums(vec4<f32>(sum0, sum1, sum2, sum3), invocation.cluster_lane);
#endif
        let output = invocation.cluster_lane % ROWS$t;
        // Those of the pass before may still be read.
        let side = at % 2u * (PARTS * COLUMNS);
        if (invocation.cluster_lane < ROWS$t) {
            parts[side + invocation.cluster * COLUMNS + output] = total;
        }
#ifdef NORMED$t
        if (invocation.cluster_lane == 0u) {
            parts[side + invocation.cluster * COLUMNS + COLUMNS - 1u] = square;
        }
#endif
        workgroupBarrier();
        total = 0.0;
#for i in 0..PARTS
        total += parts[side + $iu * COLUMNS + output];
#endfor
#ifdef ADD$t
        if (lane < ROWS$t && n < params.rows$t) {
            let value = before + total;
#ifdef FIRST$t
            publish(input1() + n % 16u * params.blocks1 + n / 16u, value);
#else
            sum[n] = value;
#ifdef ATTENTION
            publish(input3() + n % 16u * params.blocks3 + n / 16u, value);
#else
            y[n] = value * norm2[n / 4u][n % 4u];
            square += value * value;
#endif
#endif
        }
#else
        var all_squares = 0.0;
#for i in 0..PARTS
        all_squares += parts[side + $iu * COLUMNS + COLUMNS - 1u];
#endfor
        total *= inverseSqrt(all_squares / f32(16u * params.blocks$t) + params.eps);
        let other = subgroupShuffleXor(total, 1u);
        let pair = at * (ROWS$t / 2u) + lane / 2u;
        let is_known = lane < ROWS$t && pair < params.rows$t / 2u;
#ifdef ROPE$t
        let reach = HEAD_DIM / 2u;
        let head = pair / reach;
        let is_high = lane % 2u == 1u;
        let is_turned = head < params.heads + params.kv_heads;
        let turn = rope[params.position * reach + pair % reach];
        let value = select(total, total * turn.x + select(-other, other, is_high) * turn.y, is_turned);
        if (is_known) {
            let dim = pair % reach + select(0u, reach, is_high);
            publish(input4() + head * HEAD_DIM + dim % 8u * EIGHTS + dim / 8u, value);
        }
#else
        if (is_known && lane % 2u == 0u) {
            publish(input2() + pair % 16u * params.blocks2 + pair / 16u, activation(total) * other);
        }
#endif
#endif
    }
#ifdef LAST$t
#ifdef ADD$t
    square = cluster_sum(square);
    if (lane == 0u) {
        squares[group] = square;
    }
#endif
#endif
}
#endfor

// Workgroup `number` of the chain.
fn run(number: u32, invocation: Invocation) {
    var group = number;
#for t in FIRST..STAGES
    if (group < params.groups$t) {
        stage$t(group, invocation);
        return;
    }
    group -= params.groups$t;
#endfor
#ifdef ATTENTION
    if (group < params.groups4) {
        attention_stage(group, invocation);
        return;
    }
    join_stage(group - params.groups4, invocation);
#endif
}

@compute @workgroup_size(WORKGROUP)
fn main(
#import arguments
) {
#import from_arguments
    if (invocation.lane == 0u) {
        // The counter begins at PENDING, the largest number.
        ticket = atomicAdd(&links[TICKET], 1u) + 1u;
    }
    let number = workgroupUniformLoad(&ticket);
    run(number, invocation);
    // After the work: before it, this load delays every workgroup.
    if (number == 0u && invocation.lane == 0u && atomicLoad(&stale[EXPIRED]) != 0u) {
        atomicStore(&links[EXPIRED], 1u);
    }
}
