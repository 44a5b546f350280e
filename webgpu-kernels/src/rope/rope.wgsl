// For each row r of a sequence, at position p = past_len + r, and each pair i < reach = rotary_dim / 2 of a head, with
// (c, s) the cosine and sine of the pair's angle at p:
//     out[i]         = in[i] * c - in[i + reach] * s
//     out[i + reach] = in[i + reach] * c + in[i] * s
// What lies beyond rotary_dim stays as it is. Query heads go to q, key heads to the cache at p; value heads go to the
// cache unturned. A lane takes two neighbouring pairs, as a pair of f16 is one word of the cache; of what is not turned, a
// quad.
#import invocation

struct Params {
    lanes: u32, first_row: u32, heads: u32, kv_heads: u32, head_dim: u32, rotary_dim: u32, past_len: u32, capacity: u32,
    kv_dim: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> qkv: array<f32>;              // [any, heads + 2 * kv_heads, head_dim]
@group(0) @binding(2) var<storage, read> rope: array<f32>;             // [positions, rotary_dim / 2, 2]
@group(0) @binding(3) var<storage, read_write> q: array<f32>;          // [any, heads, head_dim]
@group(0) @binding(4) var<storage, read_write> k_cache: array<u32>;    // [kv_heads, capacity, kv_dim], f16 in pairs or f32
@group(0) @binding(5) var<storage, read_write> v_cache: array<u32>;    // [kv_heads, capacity, kv_dim], f16 in pairs or f32

#ifdef KV_F16
const MAX_F16: f32 = 65504.0;
#endif

@compute @workgroup_size(WORKGROUP)
fn main(workgroups: Workgroups, invocation: Invocation) {
    let at = workgroup_index(workgroups) * WORKGROUP + invocation.lane;
    if (at >= params.lanes) {
        return;
    }
    let quads = params.head_dim / 4u;
    let all_heads = params.heads + 2u * params.kv_heads;
    let quad = at % quads;
    let head = (at / quads) % all_heads;
    let r = at / (quads * all_heads);
    let is_turned = 4u * quad < params.rotary_dim;
    let i = select(4u * quad, 2u * quad, is_turned);
    let reach = select(2u, params.rotary_dim / 2u, is_turned);
    let position = params.past_len + r;
    let row = params.first_row + r;

    let start = (row * all_heads + head) * params.head_dim + i;
    var low = vec2<f32>(qkv[start], qkv[start + 1u]);
    var high = vec2<f32>(qkv[start + reach], qkv[start + reach + 1u]);
    if (is_turned && head < params.heads + params.kv_heads) {
        let angle = position * params.rotary_dim + 2u * i;
        let c = vec2<f32>(rope[angle], rope[angle + 2u]);
        let s = vec2<f32>(rope[angle + 1u], rope[angle + 3u]);
        let turned = low * c - high * s;
        high = high * c + low * s;
        low = turned;
    }

    if (head < params.heads) {
        let to = (row * params.heads + head) * params.head_dim + i;
        q[to] = low.x;
        q[to + 1u] = low.y;
        q[to + reach] = high.x;
        q[to + reach + 1u] = high.y;
        return;
    }
    let is_key = head < params.heads + params.kv_heads;
    let kv_head = head - params.heads - select(params.kv_heads, 0u, is_key);
    let to = (kv_head * params.capacity + position) * params.kv_dim + i;
#ifdef KV_F16
    // Beyond it WGSL promises nothing, and an infinite key would make every score NaN.
    let low_word = pack2x16float(clamp(low, vec2<f32>(-MAX_F16), vec2<f32>(MAX_F16)));
    let high_word = pack2x16float(clamp(high, vec2<f32>(-MAX_F16), vec2<f32>(MAX_F16)));
    if (is_key) {
        k_cache[to / 2u] = low_word;
        k_cache[(to + reach) / 2u] = high_word;
    } else {
        v_cache[to / 2u] = low_word;
        v_cache[(to + reach) / 2u] = high_word;
    }
#else
    let low_words = bitcast<vec2<u32>>(low);
    let high_words = bitcast<vec2<u32>>(high);
    if (is_key) {
        k_cache[to] = low_words.x;
        k_cache[to + 1u] = low_words.y;
        k_cache[to + reach] = high_words.x;
        k_cache[to + reach + 1u] = high_words.y;
    } else {
        v_cache[to] = low_words.x;
        v_cache[to + 1u] = low_words.y;
        v_cache[to + reach] = high_words.x;
        v_cache[to + reach + 1u] = high_words.y;
    }
#endif
}
