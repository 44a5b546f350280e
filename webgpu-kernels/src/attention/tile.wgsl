// y[r, h] = sum over keys p of softmax_p(scale * q[r, h] . k[h / GROUP, p]) * v[h / GROUP, p],  p <= past_len + r
// With WINDOW, each row sees the last `window` of its keys. With SOFT_CAP, scores are capped.
//
// A workgroup of 8 x 8 lanes takes 32 slots, pairs of a row and one of the GROUP heads that share a key head, so that a
// tile of 32 keys and values is loaded once for all of them. Softmax is online: m is the largest score so far, l the sum
// of exp(score - m), and both are kept in registers by every lane of a slot. Heads go through workgroup memory 32
// values, a chunk, at a time.
#import invocation
#import kv
#ifdef SOFT_CAP
#import soft_cap
#endif

struct Params {
    rows: u32, first_row: u32, kv_heads: u32, past_len: u32, capacity: u32, groups: u32, window: u32,
    scale: f32, soft_cap: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>;          // [any, kv_heads * GROUP, HEAD_DIM / 4]
@group(0) @binding(2) var<storage, read> k_cache: array<Stored8>;      // [kv_heads, capacity] rows
@group(0) @binding(3) var<storage, read> v_cache: array<Stored8>;      // [kv_heads, capacity] rows
@group(0) @binding(4) var<storage, read_write> y: array<vec4<f32>>;    // [any, kv_heads * GROUP, HEAD_DIM / 4]

// A score that counts for nothing.
const LOWEST: f32 = -3.0e38;
const HEAD_QUADS: u32 = HEAD_DIM / 4u;

var<workgroup> q_tile: array<vec4<f32>, 32 * 8>;                       // [dim of chunk, slot / 4]
var<workgroup> kv_tile: array<vec4<f32>, 32 * 8>;                      // [dim of chunk, key / 4], then [key, dim / 4]
var<workgroup> p_tile: array<vec4<f32>, 32 * 8>;                       // [key, slot / 4]
var<workgroup> maxima: array<vec4<f32>, 64>;                           // [key / 4, slot / 4]
var<workgroup> sums: array<vec4<f32>, 64>;                             // [key / 4, slot / 4]

fn load_eight(is_key: bool, at: u32, eight: u32) -> Eight {
    if (eight >= EIGHTS) {
        return Eight(vec4<f32>(0.0), vec4<f32>(0.0));
    }
    if (is_key) {
        return load_key(at, eight);
    }
    return load_value(at, eight);
}

// Where slot `i` of all rows and heads is in q and y, in heads.
fn slot_head(i: u32, kv_head: u32) -> u32 {
    return (params.first_row + i / GROUP) * params.kv_heads * GROUP + kv_head * GROUP + i % GROUP;
}

@compute @workgroup_size(8, 8)
fn main(workgroups: Workgroups, invocation: Invocation) {
    let group = workgroup_index(workgroups);
    if (group >= params.groups) {
        return;
    }
    let slots = params.rows * GROUP;
    let kv_head = group % params.kv_heads;
    let first_slot = group / params.kv_heads * 32u;
    let lane = invocation.lane;
    // In scores a lane has 4 slots x 4 keys, in y 4 slots x 4 dims of each chunk.
    let lane_s = lane / 8u;
    let lane_k = lane % 8u;
    let last_row = min(first_slot + 31u, slots - 1u) / GROUP;
    let keys = params.past_len + last_row + 1u;
    // Slots beyond the last are computed like it and not written.
#for i in 0..4
    let slot$i = min(first_slot + 4u * lane_s + $iu, slots - 1u);
#endfor
    let limit = vec4<u32>(params.past_len) + vec4<u32>(slot0, slot1, slot2, slot3) / GROUP;

#ifdef WINDOW
    let first_keys = limit + 1u - min(vec4<u32>(params.window), limit + 1u);
    // What the first slot sees, from a whole tile on.
    let seen = params.past_len + first_slot / GROUP + 1u;
    let begin = (seen - min(params.window, seen)) / 32u * 32u;
#else
    let begin = 0u;
#endif

    var m = vec4<f32>(LOWEST);
    var l = vec4<f32>(0.0);
#for c in 0..CHUNKS
#for i in 0..4
    var y$c_$i = vec4<f32>(0.0);
#endfor
#endfor

    for (var first_key = begin; first_key < keys; first_key += 32u) {
        var s0 = vec4<f32>(0.0);
        var s1 = vec4<f32>(0.0);
        var s2 = vec4<f32>(0.0);
        var s3 = vec4<f32>(0.0);
        for (var chunk = 0u; chunk < CHUNKS; chunk++) {
            // One quad of dims of four slots, and of four keys.
            let quad = 8u * chunk + lane_s;
#for i in 0..4
            var q$i = vec4<f32>(0.0);
            if (quad < HEAD_QUADS) {
                let slot = min(first_slot + 4u * lane_k + $iu, slots - 1u);
                q$i = q[slot_head(slot, kv_head) * HEAD_QUADS + quad];
            }
            let key$i = min(first_key + 4u * lane_k + $iu, keys - 1u);
            let eight$i = load_eight(true, kv_head * params.capacity + key$i, quad / 2u);
            let k$i = select(eight$i.a, eight$i.b, (quad & 1u) == 1u);
#endfor
            let qs = transpose(mat4x4<f32>(q0, q1, q2, q3));
            let ks = transpose(mat4x4<f32>(k0, k1, k2, k3));
#for j in 0..4
            q_tile[(4u * lane_s + $ju) * 8u + lane_k] = qs[$j];
            kv_tile[(4u * lane_s + $ju) * 8u + lane_k] = ks[$j];
#endfor
            workgroupBarrier();
            for (var d = 0u; d < 32u; d += 4u) {
#for j in 0..4
                {
                    let a = q_tile[(d + $ju) * 8u + lane_s];
                    let b = kv_tile[(d + $ju) * 8u + lane_k];
                    s0 += a.x * b;
                    s1 += a.y * b;
                    s2 += a.z * b;
                    s3 += a.w * b;
                }
#endfor
            }
            workgroupBarrier();
        }

        // From here on as columns: p$j is key 4 * lane_k + j of four slots.
        let products = transpose(mat4x4<f32>(s0, s1, s2, s3));
        var m_new = m;
#for j in 0..4
        let key$j = first_key + 4u * lane_k + $ju;
#ifdef WINDOW
        let is_seen$j = (vec4<u32>(key$j) <= limit) & (vec4<u32>(key$j) >= first_keys);
#else
        let is_seen$j = vec4<u32>(key$j) <= limit;
#endif
#ifdef SOFT_CAP
        let scaled$j = soft_cap(products[$j] * params.scale, params.soft_cap);
#else
        let scaled$j = products[$j] * params.scale;
#endif
        let score$j = select(vec4<f32>(LOWEST), scaled$j, is_seen$j);
        m_new = max(m_new, score$j);
#endfor
        maxima[lane_k * 8u + lane_s] = m_new;
        workgroupBarrier();
#for j in 0..8
        m_new = max(m_new, maxima[$ju * 8u + lane_s]);
#endfor
        var sum = vec4<f32>(0.0);
#for j in 0..4
        let p$j = select(vec4<f32>(0.0), exp(score$j - m_new), is_seen$j);
        p_tile[(4u * lane_k + $ju) * 8u + lane_s] = p$j;
        sum += p$j;
#endfor
        sums[lane_k * 8u + lane_s] = sum;
        let correction = exp(m - m_new);
        m = m_new;
        l *= correction;
#for c in 0..CHUNKS
#for i in 0..4
        y$c_$i *= correction[$i];
#endfor
#endfor

#for c in 0..CHUNKS
        for (var i = lane; i < 128u; i += 64u) {
            // One key, eight dims. Beyond the last key p is zero, but the cache may hold anything.
            let key = min(first_key + i / 4u, keys - 1u);
            let eight = load_eight(false, kv_head * params.capacity + key, 4u * $cu + i % 4u);
            kv_tile[2u * i] = eight.a;
            kv_tile[2u * i + 1u] = eight.b;
        }
        workgroupBarrier();
        for (var key = 0u; key < 32u; key += 4u) {
#for j in 0..4
            {
                let p = p_tile[(key + $ju) * 8u + lane_s];
                let v = kv_tile[(key + $ju) * 8u + lane_k];
                y$c_0 += p.x * v;
                y$c_1 += p.y * v;
                y$c_2 += p.z * v;
                y$c_3 += p.w * v;
            }
#endfor
        }
        workgroupBarrier();
#endfor
#for j in 0..8
        l += sums[$ju * 8u + lane_s];
#endfor
    }

#for i in 0..4
    if (first_slot + 4u * lane_s + $iu < slots) {
        let at = slot_head(slot$i, kv_head) * HEAD_QUADS;
#for c in 0..CHUNKS
        if (8u * $cu + lane_k < HEAD_QUADS) {
            y[at + 8u * $cu + lane_k] = y$c_$i / l[$i];
        }
#endfor
    }
#endfor
}
