// For each row r of a batch, at its position p, and each pair i < reach = rotary_dim / 2 of a head, with
// (c, s) the cosine and sine of the pair's angle at p:
//     out[i]         = in[i] * c - in[i + reach] * s
//     out[i + reach] = in[i + reach] * c + in[i] * s
// Values beyond rotary_dim are copied unchanged. Query heads go to q. Key heads and unrotated value heads go to the pool at p. A
// lane has a quad of the output: one word of eight-bit codes. Neighboring lanes share a group, which has one scale.
#import invocation

struct Params {
    lanes: u32, heads: u32, kv_heads: u32, head_dim: u32, rotary_dim: u32, head_quads: u32, kv_row: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> qkv: array<f32>;              // [rows, heads + 2 * kv_heads, head_dim]
@group(0) @binding(2) var<storage, read> rope: array<f32>;             // [positions, rotary_dim / 2, 2]
@group(0) @binding(3) var<storage, read_write> q: array<f32>;          // [rows, heads, head_dim]
@group(0) @binding(4) var<storage, read_write> kv: array<u32>;         // [pages, 2, kv_heads, KV_PAGE, kv_row], see kv.wgsl
@group(0) @binding(5) var<storage, read> rows: array<u32>;             // see kv_pages.wgsl

#import kv_pages
#ifdef KV_F16
#import f16_pair
#endif
#ifdef KV_Q8
// Lanes of a group, and the largest of each one's quad.
const GROUP_LANES: u32 = KV_GROUP / 4u;
var<workgroup> largest: array<f32, WORKGROUP>;
#endif

// Values i and i + 1 of the head at `start`, rotated for `position`. Both are in the same half.
fn turned(start: u32, i: u32, position: u32) -> vec2<f32> {
    let value = vec2<f32>(qkv[start + i], qkv[start + i + 1u]);
    if (i >= params.rotary_dim) {
        return value;
    }
    let reach = params.rotary_dim / 2u;
    let is_low = i < reach;
    let at = start + select(i - reach, i + reach, is_low);
    let other = vec2<f32>(qkv[at], qkv[at + 1u]);
    let angle = position * params.rotary_dim + 2u * select(i - reach, i, is_low);
    let c = vec2<f32>(rope[angle], rope[angle + 2u]);
    let s = vec2<f32>(rope[angle + 1u], rope[angle + 3u]);
    return value * c + select(other, -other, is_low) * s;
}

@compute @workgroup_size(WORKGROUP)
fn main(
#import arguments
) {
#import from_arguments
    let at = workgroup_index(workgroups) * WORKGROUP + invocation.lane;
    let all_heads = params.heads + 2u * params.kv_heads;
    let quad = at % params.head_quads;
    let head = (at / params.head_quads) % all_heads;
    let r = at / (params.head_quads * all_heads);
    let i = 4u * quad;
    let is_live = at < params.lanes && i < params.head_dim;
    let is_query = head < params.heads;
    let is_key = !is_query && head < params.heads + params.kv_heads;

    var values = vec4<f32>(0.0);
    if (is_live) {
        let start = (r * all_heads + head) * params.head_dim;
        if (is_query || is_key) {
            let position = position_of(r);
            values = vec4<f32>(turned(start, i, position), turned(start, i + 2u, position));
        } else {
            values = vec4<f32>(qkv[start + i], qkv[start + i + 1u], qkv[start + i + 2u], qkv[start + i + 3u]);
        }
    }
#ifdef KV_Q8
    let sizes = abs(values);
    largest[invocation.lane] = max(max(sizes.x, sizes.y), max(sizes.z, sizes.w));
    workgroupBarrier();
#endif
    if (!is_live) {
        return;
    }
    if (is_query) {
        let to = (r * params.heads + head) * params.head_dim + i;
        q[to] = values.x;
        q[to + 1u] = values.y;
        q[to + 2u] = values.z;
        q[to + 3u] = values.w;
        return;
    }
    let to = row_in_pool(pages_of(r), head - params.heads, position_of(r)) * params.kv_row;
#ifdef KV_Q8
    var most = 0.0;
    let first_lane = invocation.lane / GROUP_LANES * GROUP_LANES;
    for (var lane = 0u; lane < GROUP_LANES; lane++) {
        most = max(most, largest[first_lane + lane]);
    }
    // Not zero, as it is a divisor, and not a subnormal, which some devices flush to zero.
    let scale = max(most / 127.0, 1.2e-38);
    let codes = vec4<u32>(vec4<i32>(clamp(round(values / scale), vec4<f32>(-127.0), vec4<f32>(127.0)))) & vec4<u32>(255u);
    kv[to + quad] = codes.x | (codes.y << 8u) | (codes.z << 16u) | (codes.w << 24u);
    if (quad % GROUP_LANES == 0u) {
        let code_words = (params.head_dim + 7u) / 8u * 2u;
        kv[to + code_words + quad / GROUP_LANES] = bitcast<u32>(scale);
    }
#else
#ifdef KV_F16
    kv[to + i / 2u] = to_pair(values.xy);
    kv[to + i / 2u + 1u] = to_pair(values.zw);
#else
    let words = bitcast<vec4<u32>>(values);
    kv[to + i] = words.x;
    kv[to + i + 1u] = words.y;
    kv[to + i + 2u] = words.z;
    kv[to + i + 3u] = words.w;
#endif
#endif
}
