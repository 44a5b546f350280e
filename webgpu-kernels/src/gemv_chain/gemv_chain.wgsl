// The end of a decoder's layer for one row, products that each need the whole of the one before, in one dispatch:
//   0  sum[n] += sum over k of x[k] * w0[n, k], y0 = sum * norm0
//   1  y1[i] = silu(v[i]) * v[rows / 2 + i], where v[n] = sum over k of normed(y0)[k] * w1[n, k]
//   2  sum[n] += sum over k of y1[k] * w2[n, k], y2 = sum * norm2
// and with ROPE, what the next layer begins with:
//   3  rows of queries, keys and values, sum over k of normed(y2)[k] * w3[n, k], as in gemv.wgsl
// normed(y) is y / sqrt(mean of sum^2 + eps); squares hold what the mean is of, in parts, one of each workgroup.
//
// The first workgroups do stage 0, the next stage 1, and so on. One of a later stage asks for its first weights, and waits for
// all of the stage before: they have smaller numbers, so they are done or at work, and it cannot wait for what
// waits for it. Meanwhile the memory is busy with weights, which between dispatches it is not. Where a workgroup may not wait,
// each stage is a dispatch from `first_group` on, and has arrived before the next.
//
// What one stage leaves for the next lies in the order in which its lanes read it: value 16 * b + i at i * blocks + b.
//
// A workgroup of PARTS subgroups has ROWS outputs at a time, for `passes` times; a lane takes STEPS half groups of each, and asks for the
// next as soon as it is done with one. x is made fixed-point once, see fixed_point.wgsl.
#import invocation
#import unpack
#import fixed_point
#import subgroup_sums
#import activation

struct Params {
#for t in 0..STAGES
    rows$t: u32, blocks$t: u32, groups$t: u32, passes$t: u32,
#endfor
    eps: f32, first_group: u32,
#ifdef ROPE
    heads: u32, kv_heads: u32, head_dim: u32, position: u32, capacity: u32, kv_row: u32,
#endif
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q_weight0: array<Words>;             // [rows0, blocks0], see unpack
@group(0) @binding(2) var<storage, read> q_scale0: array<u32>;                // [rows0, blocks0 / 2], two f16 to a word
@group(0) @binding(3) var<storage, read> q_weight1: array<Words>;             // [rows1, blocks1]
@group(0) @binding(4) var<storage, read> q_scale1: array<u32>;                // [rows1, blocks1 / 2]
@group(0) @binding(5) var<storage, read> q_weight2: array<Words>;             // [rows2, blocks2]
@group(0) @binding(6) var<storage, read> q_scale2: array<u32>;                // [rows2, blocks2 / 2]
@group(0) @binding(7) var<storage, read> q_weight3: array<Words>;             // [rows3, blocks3]; without ROPE, anything
@group(0) @binding(8) var<storage, read> q_scale3: array<u32>;                // [rows3, blocks3 / 2]; the same
@group(0) @binding(9) var<storage, read> x: array<vec4<f32>>;                 // [4 * blocks0]
@group(0) @binding(10) var<storage, read> norm0: array<f32>;                  // [rows0]
@group(0) @binding(11) var<storage, read> norm2: array<f32>;                  // [rows2]
@group(0) @binding(12) var<storage, read_write> sum: array<f32>;              // [rows0]
@group(0) @binding(13) var<storage, read_write> y0: array<f32>;               // [16, blocks1]
@group(0) @binding(14) var<storage, read_write> squares0: array<f32>;         // [groups0]
@group(0) @binding(15) var<storage, read_write> y1: array<f32>;               // [16, blocks2]
@group(0) @binding(16) var<storage, read_write> y2: array<f32>;               // [rows2]; with ROPE [16, blocks3]
@group(0) @binding(17) var<storage, read_write> squares2: array<f32>;         // [groups2]
@group(0) @binding(18) var<storage, read_write> arrived: array<atomic<u32>>;  // [STAGES], zero before and after
#ifdef ROPE
@group(0) @binding(19) var<storage, read> rope: array<vec2<f32>>;             // [positions, head_dim / 2]
@group(0) @binding(20) var<storage, read_write> q: array<f32>;                // [heads * head_dim]
@group(0) @binding(21) var<storage, read_write> k_cache: array<u32>;          // [kv_heads, capacity, kv_row], see kv.wgsl
@group(0) @binding(22) var<storage, read_write> v_cache: array<u32>;          // [kv_heads, capacity, kv_row], see kv.wgsl
#endif

#ifdef KV_F16
const MAX_F16: f32 = 65504.0;
#endif

const MOST_ROWS: u32 = 8u;
var<workgroup> parts: array<f32, 2u * PARTS * MOST_ROWS>;                     // [parity of the pass, PARTS, MOST_ROWS]

// Times to look whether a stage has arrived, each most of a microsecond: then something is wrong, and so is the result.
const MOST_LOOKS: u32 = 1u << 20u;

// Waits until `count` workgroups of a stage have arrived; what they wrote is seen from here on.
fn wait_for(stage: u32, count: u32, lane: u32) {
    if (lane == 0u) {
        for (var look = 0u; look < MOST_LOOKS; look++) {
            if (atomicLoad(&arrived[stage]) == count) {
                break;
            }
        }
    }
    storageBarrier();
}

// Quad i of block b of what a stage takes in.
fn input0(b: u32, i: u32) -> vec4<f32> {
    return x[4u * b + i];
}

fn input1(b: u32, i: u32) -> vec4<f32> {
    let at = 4u * i * params.blocks1 + b;
    return vec4<f32>(y0[at], y0[at + params.blocks1], y0[at + 2u * params.blocks1], y0[at + 3u * params.blocks1]);
}

fn input2(b: u32, i: u32) -> vec4<f32> {
    let at = 4u * i * params.blocks2 + b;
    return vec4<f32>(y1[at], y1[at + params.blocks2], y1[at + 2u * params.blocks2], y1[at + 3u * params.blocks2]);
}

// The sum of squares that a stage's input is normed by, in every lane.
fn square1(invocation: Invocation) -> f32 {
    var square = 0.0;
    for (var i = invocation.subgroup_lane; i < params.groups0; i += SUBGROUP_MIN_SIZE) {
        square += squares0[i];
    }
    return subgroupAdd(square);
}

#ifdef ROPE
fn input3(b: u32, i: u32) -> vec4<f32> {
    let at = 4u * i * params.blocks3 + b;
    return vec4<f32>(y2[at], y2[at + params.blocks3], y2[at + 2u * params.blocks3], y2[at + 3u * params.blocks3]);
}

fn square3(invocation: Invocation) -> f32 {
    var square = 0.0;
    for (var i = invocation.subgroup_lane; i < params.groups2; i += SUBGROUP_MIN_SIZE) {
        square += squares2[i];
    }
    return subgroupAdd(square);
}
#endif

// Where a stage leaves value n of its output.
fn place0(n: u32) -> u32 {
    return n % 16u * params.blocks1 + n / 16u;
}

fn place1(n: u32) -> u32 {
    return n % 16u * params.blocks2 + n / 16u;
}

fn place2(n: u32) -> u32 {
#ifdef ROPE
    return n % 16u * params.blocks3 + n / 16u;
#else
    return n;
#endif
}

#for t in 0..STAGES
// Row r of rows `at` of stage $t. Rows beyond the last are computed like it and not written.
fn row$t(at: u32, r: u32) -> u32 {
#ifdef ADD$t
    return min(at * ROWS$t + r, params.rows$t - 1u);
#else
    let inner = params.rows$t / 2u;
    let pair = min(at * (ROWS$t / 2u) + r / 2u, inner - 1u);
#ifdef ROPE$t
    let reach = params.head_dim / 2u;
    return pair / reach * params.head_dim + pair % reach + r % 2u * reach;
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
#ifdef AFTER0$t
    wait_for(0u, params.groups0, lane);
#endif
#ifdef AFTER1$t
    wait_for(1u, params.groups1, lane);
#endif
#ifdef AFTER2$t
    wait_for(2u, params.groups2, lane);
#endif
#for s in 0..STEPS$t
    var most$s = vec4<f32>(0.0);
#for i in 0..4
#ifdef EXACT$t
    let quad$s_$i = input$t(b$s, $iu);
#else
    let quad$s_$i = select(vec4<f32>(0.0), input$t(b$s, $iu), block$s == b$s);
#endif
    most$s = max(most$s, abs(quad$s_$i));
#endfor
    let unit$s = unit_of(most$s);
    let left$s = planes_of(quad$s_0, quad$s_1, 1.0 / unit$s);
    let right$s = planes_of(quad$s_2, quad$s_3, 1.0 / unit$s);
    // What the codes have too much is taken off before.
    let start$s = vec2<i32>(FLOAT_BITS) - i32(MAX_INT) * (plane_sums(left$s) + plane_sums(right$s));
#endfor
#ifdef ADD$t
    var square = 0.0;
#else
    let factor = inverseSqrt(square$t(invocation) / f32(16u * params.blocks$t) + params.eps);
#endif

    for (; at < end; at++) {
#ifdef ADD$t
        let n = at * ROWS$t + lane;
        let n_known = min(at * ROWS$t + min(lane, ROWS$t - 1u), params.rows$t - 1u);
        let sum_before = sum[n_known];
        let norm_here = norm$t[n_known];
#endif
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
        if (at + 1u < end) {
#for r in 0..ROWS$t
            {
                let first = row$t(at + 1u, $ru) * params.blocks$t;
#for s in 0..STEPS$t
                codes$s_$r = q_weight$t[first + b$s];
                scales$s_$r = q_scale$t[(first + b$s) >> 2u];
#endfor
            }
#endfor
        }
#ifdef EIGHT$t
        var total = eight_sums(
            vec4<f32>(sum0, sum1, sum2, sum3), vec4<f32>(sum4, sum5, sum6, sum7), invocation.subgroup_lane,
        );
#else
        var total = four_sums(vec4<f32>(sum0, sum1, sum2, sum3), invocation.subgroup_lane);
#endif
        let output = invocation.subgroup_lane % ROWS$t;
        // Those of the pass before may still be read.
        let side = at % 2u * (PARTS * MOST_ROWS);
        if (invocation.subgroup_lane < ROWS$t) {
            parts[side + invocation.subgroup * MOST_ROWS + output] = total;
        }
        workgroupBarrier();
        total = 0.0;
#for i in 0..PARTS
        total += parts[side + $iu * MOST_ROWS + output];
#endfor
#ifdef ADD$t
        if (lane < ROWS$t && n < params.rows$t) {
            let value = sum_before + total;
            sum[n] = value;
            y$t[place$t(n)] = value * norm_here;
            square += value * value;
        }
#else
        total *= factor;
        let other = subgroupShuffleXor(total, 1u);
        let pair = at * (ROWS$t / 2u) + lane / 2u;
        let is_known = lane < ROWS$t && pair < params.rows$t / 2u;
#ifdef ROPE$t
        let reach = params.head_dim / 2u;
        let head = pair / reach;
        let is_high = lane % 2u == 1u;
        let is_turned = head < params.heads + params.kv_heads;
        let turn = rope[params.position * reach + pair % reach];
        let value = select(total, total * turn.x + select(-other, other, is_high) * turn.y, is_turned);
        let next = subgroupShuffleXor(value, 2u);
        if (is_known) {
            let element = pair % reach + select(0u, reach, is_high);
            if (head < params.heads) {
                q[head * params.head_dim + element] = value;
            } else {
                let kv_head = head - params.heads - select(params.kv_heads, 0u, is_turned);
                let to = (kv_head * params.capacity + params.position) * params.kv_row;
#ifdef KV_F16
                // Two neighbours are a word. Beyond the largest f16 WGSL promises nothing.
                let word = pack2x16float(clamp(vec2<f32>(value, next), vec2<f32>(-MAX_F16), vec2<f32>(MAX_F16)));
                if (lane / 2u % 2u == 0u) {
                    if (is_turned) {
                        k_cache[to + element / 2u] = word;
                    } else {
                        v_cache[to + element / 2u] = word;
                    }
                }
#else
                if (is_turned) {
                    k_cache[to + element] = bitcast<u32>(value);
                } else {
                    v_cache[to + element] = bitcast<u32>(value);
                }
#endif
            }
        }
#else
        if (is_known && lane % 2u == 0u) {
            y$t[place$t(pair)] = activation(total) * other;
        }
#endif
#endif
    }
#ifdef ADD$t
    square = subgroupAdd(square);
    if (lane == 0u) {
        squares$t[group] = square;
    }
#endif
#ifdef LAST$t
    // All of the stages before have arrived, and nobody looks any more once all of this one do.
    if (lane == 0u && atomicAdd(&arrived[$tu], 1u) + 1u == params.groups$t) {
#for i in 0..STAGES
        atomicStore(&arrived[$iu], 0u);
#endfor
    }
#else
    storageBarrier();
    if (lane == 0u) {
        atomicAdd(&arrived[$tu], 1u);
    }
#endif
}
#endfor

@compute @workgroup_size(WORKGROUP)
fn main(workgroups: Workgroups, invocation: Invocation) {
    var group = params.first_group + workgroup_index(workgroups);
#for t in 0..STAGES
    if (group < params.groups$t) {
        stage$t(group, invocation);
        return;
    }
    group -= params.groups$t;
#endfor
}
