// y[r, h] = sum over keys p of softmax_p(scale * q[r, h] . k[h / GROUP, p]) * v[h / GROUP, p],  p <= position of r
// Each row sees only the last `window` of its keys. With SOFT_CAP, scores are capped.
//
// A workgroup has one row, HEADS heads that share a key head, and one of `splits` ranges of the row's keys (key_range.wgsl). For scores a lane
// has one key. For values it has eight dims of one of KEY_GROUPS keys at a time. Softmax is online over tiles of WORKGROUP keys. With
// several splits, the workgroup writes the weighted sum, m (the largest score) and l (the sum of exp(score - m)) for reduce.wgsl. That is
// no variant: only the end differs, and a software driver takes half a second to compile a variant.
#import invocation
#import kv
#import key_range
#ifdef SOFT_CAP
#import soft_cap
#endif

struct Params {
    rows: u32, first_row: u32, heads: u32, kv_heads: u32, splits: u32, groups: u32, window: u32, scale: f32, soft_cap: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>;          // [any, heads, HEAD_DIM / 4]
@group(0) @binding(2) var<storage, read> kv: array<Stored8>;           // [pages, 2, kv_heads, KV_PAGE] rows
@group(0) @binding(3) var<storage, read> rows: array<u32>;             // see kv_pages.wgsl
@group(0) @binding(4) var<storage, read_write> y: array<f32>;          // [any, heads, HEAD_DIM], or with splits
                                                                       // [rows, heads, splits, HEAD_DIM + 2]
const LOWEST: f32 = -3.0e38;
const HEAD_QUADS: u32 = HEAD_DIM / 4u;
const KEY_STEP: u32 = WORKGROUP;
const KEY_GROUPS: u32 = WORKGROUP / EIGHTS;
// Lanes that reduce the scores of one head.
const HEAD_LANES: u32 = WORKGROUP / 8u;

var<workgroup> q_tile: array<vec4<f32>, HEADS * EIGHTS * 2u>;          // [HEADS, EIGHTS, 2]
var<workgroup> p_tile: array<f32, HEADS * WORKGROUP>;                  // [HEADS, key]
var<workgroup> row_tile: array<u32, WORKGROUP>;                        // [key], rows of the pool
var<workgroup> parts: array<f32, WORKGROUP>;                           // [HEADS, HEAD_LANES]
var<workgroup> part_sums: array<f32, WORKGROUP>;                       // [HEADS, HEAD_LANES]
var<workgroup> largest: array<f32, HEADS>;
var<workgroup> sums: array<f32, HEADS>;
var<workgroup> corrections: array<f32, HEADS>;
var<workgroup> y_parts: array<vec4<f32>, KEY_GROUPS * EIGHTS * 2u>;    // [KEY_GROUPS, EIGHTS, 2]

@compute @workgroup_size(WORKGROUP)
fn main(
#import arguments
) {
#import from_arguments
    let group = workgroup_index(workgroups);
    if (group >= params.groups) {
        return;
    }
    let lane = invocation.lane;
    let split = group % params.splits;
    let first_head = group / params.splits % (params.heads / HEADS) * HEADS;
    let row = group / params.splits / (params.heads / HEADS);
    let range = range_of(position_of(params.first_row + row), split);
    let pages = pages_of(params.first_row + row);

    for (var i = lane; i < HEADS * EIGHTS * 2u; i += WORKGROUP) {
        let quad = i % (EIGHTS * 2u);
        var value = vec4<f32>(0.0);
        if (quad < HEAD_QUADS) {
            let head = (params.first_row + row) * params.heads + first_head + i / (EIGHTS * 2u);
            value = q[head * HEAD_QUADS + quad] * params.scale;
        }
        q_tile[i] = value;
    }
    if (lane < HEADS) {
        largest[lane] = LOWEST;
        sums[lane] = 0.0;
    }
    let eight = lane % EIGHTS;
    let key_group = lane / EIGHTS;
#for h in 0..HEADS
    var y$h_0 = vec4<f32>(0.0);
    var y$h_1 = vec4<f32>(0.0);
#endfor
    workgroupBarrier();

    for (var first_key = range.start; first_key < range.end; first_key += WORKGROUP) {
        let count = min(WORKGROUP, range.end - first_key);
#for h in 0..HEADS
        var score$h = 0.0;
#endfor
        if (lane < count) {
            let at = key_row(pages, first_head / GROUP, first_key + lane);
            row_tile[lane] = at;
            for (var e = 0u; e < EIGHTS; e += KEY_EIGHTS) {
#for j in 0..KEY_EIGHTS
                let k$j = load_row(at, e + $ju);
#endfor
#for j in 0..KEY_EIGHTS
#for h in 0..HEADS
                {
                    let q_at = ($hu * EIGHTS + e + $ju) * 2u;
                    score$h += dot(q_tile[q_at], k$j.a) + dot(q_tile[q_at + 1u], k$j.b);
                }
#endfor
#endfor
            }
        }
#for h in 0..HEADS
#ifdef SOFT_CAP
        score$h = soft_cap(vec4<f32>(score$h), params.soft_cap).x;
#endif
        p_tile[$hu * WORKGROUP + lane] = select(LOWEST, score$h, lane < count);
#endfor
        workgroupBarrier();

        // A lane reduces eight scores of its head, then the results of the HEAD_LANES lanes of that head.
        let head = lane / HEAD_LANES;
        let part = lane % HEAD_LANES;
        var m = LOWEST;
        if (head < HEADS) {
            for (var i = part; i < WORKGROUP; i += HEAD_LANES) {
                m = max(m, p_tile[head * WORKGROUP + i]);
            }
        }
        parts[lane] = m;
        workgroupBarrier();
        var m_old = LOWEST;
        var sum = 0.0;
        if (head < HEADS) {
            m_old = largest[head];
            m = max(m, m_old);
            for (var i = 0u; i < HEAD_LANES; i++) {
                m = max(m, parts[head * HEAD_LANES + i]);
            }
            for (var i = part; i < WORKGROUP; i += HEAD_LANES) {
                let p = select(0.0, exp(p_tile[head * WORKGROUP + i] - m), i < count);
                p_tile[head * WORKGROUP + i] = p;
                sum += p;
            }
        }
        part_sums[lane] = sum;
        workgroupBarrier();
        if (head < HEADS && part == 0u) {
            let correction = exp(m_old - m);
            var total = sums[head] * correction;
            for (var i = 0u; i < HEAD_LANES; i++) {
                total += part_sums[head * HEAD_LANES + i];
            }
            sums[head] = total;
            largest[head] = m;
            corrections[head] = correction;
        }
        workgroupBarrier();

#for h in 0..HEADS
        y$h_0 *= corrections[$h];
        y$h_1 *= corrections[$h];
#endfor
        if (key_group < KEY_GROUPS) {
            for (var i = key_group; i < count; i += VALUES * KEY_GROUPS) {
#for j in 0..VALUES
                // A key beyond the last is the last one with weight zero.
                let i$j = i + $ju * KEY_GROUPS;
                let v$j = load_row(value_of_key(row_tile[min(i$j, count - 1u)]), eight);
#endfor
#for j in 0..VALUES
#for h in 0..HEADS
                let p$j_$h = select(0.0, p_tile[$hu * WORKGROUP + i$j], i$j < count);
                y$h_0 += p$j_$h * v$j.a;
                y$h_1 += p$j_$h * v$j.b;
#endfor
#endfor
            }
        }
        workgroupBarrier();
    }

    // One head at a time: so y_parts has room for one, and a software driver compiles this loop once.
    for (var h = 0u; h < HEADS; h++) {
        if (key_group < KEY_GROUPS) {
            var a = y0_0;
            var b = y0_1;
#for h in 1..HEADS
            a = select(a, y$h_0, h == $hu);
            b = select(b, y$h_1, h == $hu);
#endfor
            y_parts[2u * lane] = a;
            y_parts[2u * lane + 1u] = b;
        }
        workgroupBarrier();
        let head = first_head + h;
        var to = ((params.first_row + row) * params.heads + head) * HEAD_DIM;
        var factor = 1.0 / sums[h];
        if (params.splits > 1u) {
            to = ((row * params.heads + head) * params.splits + split) * (HEAD_DIM + 2u);
            factor = 1.0;
            if (lane == 0u) {
                y[to + HEAD_DIM] = largest[h];
                y[to + HEAD_DIM + 1u] = sums[h];
            }
        }
        for (var d = lane; d < HEAD_DIM; d += WORKGROUP) {
            var total = 0.0;
            for (var g = 0u; g < KEY_GROUPS; g++) {
                total += y_parts[g * EIGHTS * 2u + d / 4u][d % 4u];
            }
            y[to + d] = total * factor;
        }
        workgroupBarrier();
    }
}
