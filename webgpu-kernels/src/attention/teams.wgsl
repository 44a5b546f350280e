// The attention of decode.wgsl where there are subgroups of one size: nothing waits for other lanes until the end.
//
// A workgroup takes one row, HEADS heads that share a key head, and one of `splits` ranges of keys from begin on. EIGHTS
// lanes are a team: each has eight dims of a key and of its value, and the team's scores are sums by shuffles. A team takes
// KEYS keys at a time, all of them on their way before the first is used, and has a softmax of its own, which is online.
// What the teams found is joined once, behind the only barrier. With SPLIT_K the workgroup leaves sum, m (the largest
// score) and l (the sum of exp(score - m)) for reduce.wgsl.
#import invocation
#import kv
#ifdef SOFT_CAP
#import soft_cap
#endif

struct Params {
    rows: u32, first_row: u32, heads: u32, past_len: u32, capacity: u32, splits: u32, split_keys: u32, groups: u32,
    window: u32, begin: u32, scale: f32, soft_cap: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>;          // [any, heads, HEAD_DIM / 4]
@group(0) @binding(2) var<storage, read> k_cache: array<Stored8>;      // [heads / GROUP, capacity] rows
@group(0) @binding(3) var<storage, read> v_cache: array<Stored8>;      // [heads / GROUP, capacity] rows
@group(0) @binding(4) var<storage, read_write> y: array<f32>;          // [any, heads, HEAD_DIM], with SPLIT_K
                                                                       // [rows, heads, splits, HEAD_DIM + 2]
const LOWEST: f32 = -3.0e38;
const HEAD_QUADS: u32 = HEAD_DIM / 4u;
const TEAMS: u32 = WORKGROUP / EIGHTS;
const PARTS: u32 = WORKGROUP / SUBGROUP_MIN_SIZE;

// What each subgroup found.
var<workgroup> y_parts: array<vec4<f32>, PARTS * HEADS * HEAD_QUADS>;  // [PARTS, HEADS, HEAD_QUADS]
var<workgroup> largest: array<f32, PARTS * HEADS>;                     // [PARTS, HEADS]
var<workgroup> sums: array<f32, PARTS * HEADS>;                        // [PARTS, HEADS]

// The sum over a team, in each of its lanes.
fn team_sum(value: f32) -> f32 {
    var sum = value;
#for b in 0..TEAM_BITS
    sum += subgroupShuffleXor(sum, 1u << $bu);
#endfor
    return sum;
}

@compute @workgroup_size(WORKGROUP)
fn main(workgroups: Workgroups, invocation: Invocation) {
    let group = workgroup_index(workgroups);
    if (group >= params.groups) {
        return;
    }
    let lane = invocation.subgroup * SUBGROUP_MIN_SIZE + invocation.subgroup_lane;
    let split = group % params.splits;
    let first_head = group / params.splits % (params.heads / HEADS) * HEADS;
    let row = group / params.splits / (params.heads / HEADS);
    let cache = first_head / GROUP * params.capacity;
    let keys = params.past_len + row + 1u;
    let start = max(params.begin + split * params.split_keys, keys - min(params.window, keys));
    let end = min(params.begin + (split + 1u) * params.split_keys, keys);

    let eight = lane % EIGHTS;
    let team = lane / EIGHTS;
#for h in 0..HEADS
    let q_at$h = ((params.first_row + row) * params.heads + first_head + $hu) * HEAD_QUADS + 2u * eight;
    let q$h_0 = q[q_at$h] * params.scale;
    let q$h_1 = q[q_at$h + 1u] * params.scale;
    var m$h = LOWEST;
    var l$h = 0.0;
    var y$h_0 = vec4<f32>(0.0);
    var y$h_1 = vec4<f32>(0.0);
#endfor

    for (var first = start; first < end; first += KEYS * TEAMS) {
#for j in 0..KEYS
        // A key beyond the last is the last with weight zero.
        let key$j = first + $ju * TEAMS + team;
        let at$j = cache + min(key$j, end - 1u);
        let k$j = load_key(at$j, eight);
        let v$j = load_value(at$j, eight);
#endfor
#for h in 0..HEADS
        {
            var most = m$h;
#for j in 0..KEYS
            var score$j = team_sum(dot(q$h_0, k$j.a) + dot(q$h_1, k$j.b));
#ifdef SOFT_CAP
            score$j = soft_cap(vec4<f32>(score$j), params.soft_cap).x;
#endif
            most = select(most, max(most, score$j), key$j < end);
#endfor
            let correction = exp(m$h - most);
            m$h = most;
            l$h *= correction;
            y$h_0 *= correction;
            y$h_1 *= correction;
#for j in 0..KEYS
            {
                let p = select(0.0, exp(score$j - most), key$j < end);
                l$h += p;
                y$h_0 += p * v$j.a;
                y$h_1 += p * v$j.b;
            }
#endfor
        }
#endfor
    }

#for h in 0..HEADS
    {
        // Over the teams of a subgroup.
        var most = m$h;
#for b in TEAM_BITS..SUBGROUP_BITS
        most = max(most, subgroupShuffleXor(most, 1u << $bu));
#endfor
        let correction = exp(m$h - most);
        l$h *= correction;
        y$h_0 *= correction;
        y$h_1 *= correction;
#for b in TEAM_BITS..SUBGROUP_BITS
        l$h += subgroupShuffleXor(l$h, 1u << $bu);
        y$h_0 += subgroupShuffleXor(y$h_0, 1u << $bu);
        y$h_1 += subgroupShuffleXor(y$h_1, 1u << $bu);
#endfor
        let part = invocation.subgroup * HEADS + $hu;
        if (invocation.subgroup_lane < EIGHTS) {
            y_parts[part * HEAD_QUADS + 2u * eight] = y$h_0;
            y_parts[part * HEAD_QUADS + 2u * eight + 1u] = y$h_1;
        }
        if (invocation.subgroup_lane == 0u) {
            largest[part] = most;
            sums[part] = l$h;
        }
    }
#endfor
    workgroupBarrier();

    for (var i = lane; i < HEADS * HEAD_QUADS; i += WORKGROUP) {
        let in_group = i / HEAD_QUADS;
        let quad = i % HEAD_QUADS;
        var most = LOWEST;
        for (var p = 0u; p < PARTS; p++) {
            most = max(most, largest[p * HEADS + in_group]);
        }
        var sum = 0.0;
        var total = vec4<f32>(0.0);
        for (var p = 0u; p < PARTS; p++) {
            let factor = exp(largest[p * HEADS + in_group] - most);
            sum += factor * sums[p * HEADS + in_group];
            total += factor * y_parts[(p * HEADS + in_group) * HEAD_QUADS + quad];
        }
        let head = first_head + in_group;
#ifdef SPLIT_K
        let to = ((row * params.heads + head) * params.splits + split) * (HEAD_DIM + 2u);
        if (quad == 0u) {
            y[to + HEAD_DIM] = most;
            y[to + HEAD_DIM + 1u] = sum;
        }
#else
        let to = ((params.first_row + row) * params.heads + head) * HEAD_DIM;
        total /= sum;
#endif
#for j in 0..4
        y[to + 4u * quad + $ju] = total[$j];
#endfor
    }
}
