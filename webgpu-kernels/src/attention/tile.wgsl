// y[r, h] = sum over keys p of softmax_p(scale * q[r, h] . k[h / GROUP, p]) * v[h / GROUP, p],  p <= past_len + r, for the `rows` rows of a
// sequence from `first_row` on.
// With WINDOW, each row sees the last `window` of its keys. With SOFT_CAP, scores are capped.
//
// A slot is a row and one of the GROUP heads that share a key head. A workgroup of 8 x 16 lanes has SLOTS slots, and loads each tile of 64
// keys and values once for all of them. A lane has SETS sets of SET slots (up to four), eight apart: for scores with 4 keys, for y with a
// quad of dims of each CHUNK of 64. Softmax is online: m, the largest score so far, is equal in all lanes of a slot. l, the sum of
// exp(score - m), covers only the lane's keys until the end.
#import invocation
#import kv
#ifdef SOFT_CAP
#import soft_cap
#endif

// `pages` is the index of the sequence's page list in the binding `rows`.
struct Params {
    rows: u32, first_row: u32, kv_heads: u32, past_len: u32, pages: u32, groups: u32, window: u32,
    scale: f32, soft_cap: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>;          // [any, kv_heads * GROUP, HEAD_DIM / 4]
@group(0) @binding(2) var<storage, read> kv: array<Stored8>;           // [pages, 2, kv_heads, KV_PAGE] rows
@group(0) @binding(3) var<storage, read> rows: array<u32>;             // see kv_pages.wgsl
@group(0) @binding(4) var<storage, read_write> y: array<vec4<f32>>;    // [any, kv_heads * GROUP, HEAD_DIM / 4]

// The score of a key that does not count.
const LOWEST: f32 = -3.0e38;
const HEAD_QUADS: u32 = HEAD_DIM / 4u;
const SLOTS: u32 = 8u * SET * SETS;
const KEYS: u32 = 64u;
const LANES: u32 = 128u;
// Scores are computed for 16 dims of slots and keys at a time, y for 64 dims of 32 keys.
const STEP: u32 = 4u;
const HALF: u32 = KEYS / 2u;

// First q [slot, STEP] and k [key, STEP], see `place`; then p [slot, key of half / 4].
var<workgroup> left: array<vec4<f32>, STEP * (SLOTS + KEYS)>;
// First the largest score of each lane, then v [key of half, dim of chunk / 4]. At the end the sum of each lane.
var<workgroup> right: array<vec4<f32>, HALF * 16u>;

// The place of quad `quad` of row `row`. Lanes that read the same quad of neighboring rows use all banks.
fn place(row: u32, quad: u32) -> u32 {
    return row * STEP + (quad ^ ((row >> 1u) & 3u));
}

// The head of q and y that is slot `i`.
fn slot_head(i: u32, kv_head: u32) -> u32 {
    return (params.first_row + i / GROUP) * params.kv_heads * GROUP + kv_head * GROUP + i % GROUP;
}

@compute @workgroup_size(128)
fn main(
#import arguments
) {
#import from_arguments
    let group = workgroup_index(workgroups);
    if (group >= params.groups) {
        return;
    }
    let slots = params.rows * GROUP;
    let kv_head = group % params.kv_heads;
    // The last rows see the most keys, so they start first.
    let first_slot = (params.groups - 1u - group) / params.kv_heads * SLOTS;
    let lane = invocation.lane;
    // 32 lanes, the subgroup of many devices, are 4 x 8 of the workgroup's 8 x 16.
    let lane_s = 4u * (lane / 32u % 2u) + lane / 8u % 4u;
    let lane_k = 8u * (lane / 64u) + lane % 8u;
    let last_row = min(first_slot + SLOTS - 1u, slots - 1u) / GROUP;
    let keys = params.past_len + last_row + 1u;
    // Slots beyond the last repeat it and are not written.
#for a in 0..SETS
#for i in 0..SET
    let slot$a_$i = min(first_slot + lane_s + 8u * (SET * $au + $iu), slots - 1u);
    let limit$a_$i = params.past_len + slot$a_$i / GROUP;
#for c in 0..CHUNKS
    var y$c_$a_$i = vec4<f32>(0.0);
#endfor
#endfor
    var m$a = vec4<f32>(LOWEST);
    var l$a = vec4<f32>(0.0);
#endfor

#ifdef WINDOW
    // Begin with the tile of the first key that the first slot sees.
    let seen = params.past_len + first_slot / GROUP + 1u;
    let begin = (seen - min(params.window, seen)) / KEYS * KEYS;
#else
    let begin = 0u;
#endif

    for (var first_key = begin; first_key < keys; first_key += KEYS) {
#for a in 0..SETS
#for i in 0..SET
        var s$a_$i = vec4<f32>(0.0);
#endfor
#endfor
        // A lane loads one key, eight dims at a time.
        let key_at = key_row(params.pages, kv_head, min(first_key + lane / 2u, keys - 1u));
        for (var first_quad = 0u; first_quad < 2u * EIGHTS; first_quad += STEP) {
            for (var i = lane; i < SLOTS * STEP; i += LANES) {
                let slot = min(first_slot + i / STEP, slots - 1u);
                let quad = first_quad + i % STEP;
                var value = vec4<f32>(0.0);
                if (quad < HEAD_QUADS) {
                    value = q[slot_head(slot, kv_head) * HEAD_QUADS + quad];
                }
                left[place(i / STEP, i % STEP)] = value;
            }
            {
                // The four keys that a lane multiplies are sixteen rows apart.
                let row = lane / 2u;
                // Beyond the last dim q is zero.
                let eight = min(first_quad / 2u + lane % 2u, EIGHTS - 1u);
                let values = load_row(key_at, eight);
                let at = SLOTS + row % 4u * 16u + row / 4u;
                left[place(at, lane % 2u * 2u)] = values.a;
                left[place(at, lane % 2u * 2u + 1u)] = values.b;
            }
            workgroupBarrier();
            for (var quad = 0u; quad < STEP; quad++) {
#for j in 0..4
                let k$j = left[place(SLOTS + $ju * 16u + lane_k, quad)];
#endfor
#for a in 0..SETS
#for i in 0..SET
                {
                    let a = left[place(lane_s + 8u * (SET * $au + $iu), quad)];
#for j in 0..4
                    s$a_$i[$j] += a.x * k$j.x;
                    s$a_$i[$j] += a.y * k$j.y;
                    s$a_$i[$j] += a.z * k$j.z;
                    s$a_$i[$j] += a.w * k$j.w;
#endfor
                }
#endfor
#endfor
            }
            workgroupBarrier();
        }

        let key = vec4<u32>(first_key + 4u * lane_k) + vec4<u32>(0u, 1u, 2u, 3u);
#for a in 0..SETS
        var new_m$a = m$a;
#for i in 0..SET
        {
#ifdef WINDOW
            let limit = vec4<u32>(limit$a_$i);
            let is_seen = (key <= limit) & (key + min(vec4<u32>(params.window), limit + 1u) > limit);
#else
            let is_seen = key <= vec4<u32>(limit$a_$i);
#endif
#ifdef SOFT_CAP
            s$a_$i = select(vec4<f32>(LOWEST), soft_cap(s$a_$i * params.scale, params.soft_cap), is_seen);
#else
            s$a_$i = select(vec4<f32>(LOWEST), s$a_$i * params.scale, is_seen);
#endif
            new_m$a[$i] = max(new_m$a[$i], max(max(s$a_$i.x, s$a_$i.y), max(s$a_$i.z, s$a_$i.w)));
        }
#endfor
        right[($au * 16u + lane_k) * 8u + lane_s] = new_m$a;
#endfor
        workgroupBarrier();
        for (var other = 0u; other < 16u; other++) {
#for a in 0..SETS
            new_m$a = max(new_m$a, right[($au * 16u + other) * 8u + lane_s]);
#endfor
        }
#for a in 0..SETS
        {
            let correction = exp(m$a - new_m$a);
            m$a = new_m$a;
            l$a *= correction;
#for i in 0..SET
            // If a slot has seen no key yet, exp(LOWEST - LOWEST) would be one.
            s$a_$i = select(exp(s$a_$i - new_m$a[$i]), vec4<f32>(0.0), s$a_$i == vec4<f32>(LOWEST));
            l$a[$i] += dot(s$a_$i, vec4<f32>(1.0));
#for c in 0..CHUNKS
            y$c_$a_$i *= correction[$i];
#endfor
#endfor
        }
#endfor

#for h in 0..2
        if (first_key + $hu * HALF < keys) {
#for c in 0..CHUNKS
            workgroupBarrier();
            if ($cu == 0u && lane_k / 8u == $hu) {
#for a in 0..SETS
#for i in 0..SET
                left[(lane_s + 8u * (SET * $au + $iu)) * 8u + lane_k % 8u] = s$a_$i;
#endfor
#endfor
            }
            for (var i = lane; i < HALF * 8u; i += LANES) {
                // One key, eight dims. Beyond the last key p is zero, but the pool may hold NaN.
                let key = min(first_key + $hu * HALF + i / 8u, keys - 1u);
                let eight = min($cu * 8u + i % 8u, EIGHTS - 1u);
                let values = load_row(value_row(params.pages, kv_head, key), eight);
                right[2u * i] = values.a;
                right[2u * i + 1u] = values.b;
            }
            workgroupBarrier();
            for (var keys4 = 0u; keys4 < 8u; keys4++) {
#for j in 0..4
                let v$j = right[(4u * keys4 + $ju) * 16u + lane_k];
#endfor
#for a in 0..SETS
#for i in 0..SET
                {
                    let p = left[(lane_s + 8u * (SET * $au + $iu)) * 8u + keys4];
                    y$c_$a_$i += p.x * v0;
                    y$c_$a_$i += p.y * v1;
                    y$c_$a_$i += p.z * v2;
                    y$c_$a_$i += p.w * v3;
                }
#endfor
#endfor
            }
#endfor
        }
#endfor
        workgroupBarrier();
    }

#for a in 0..SETS
    right[($au * 16u + lane_k) * 8u + lane_s] = l$a;
#endfor
    workgroupBarrier();
#for a in 0..SETS
    var sum$a = vec4<f32>(0.0);
    for (var other = 0u; other < 16u; other++) {
        sum$a += right[($au * 16u + other) * 8u + lane_s];
    }
#for i in 0..SET
    if (first_slot + lane_s + 8u * (SET * $au + $iu) < slots) {
        let at = slot_head(slot$a_$i, kv_head) * HEAD_QUADS;
#for c in 0..CHUNKS
        if (16u * $cu + lane_k < HEAD_QUADS) {
            y[at + 16u * $cu + lane_k] = y$c_$a_$i / sum$a[$i];
        }
#endfor
    }
#endfor
#endfor
}
