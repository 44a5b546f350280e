// The rows are those of queries, keys and values, head by head. v[n] = sum over k of x[k] * w[n, k] / sqrt(mean of x^2 before its
// norm + eps). Rotated queries go to y, rotated keys and values to the cache at `position`.

struct Params {
    rows: u32, cols: u32, blocks: u32, parts: u32, eps: f32,
    heads: u32, kv_heads: u32, head_dim: u32, position: u32, capacity: u32, kv_row: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
#import gemv/inputs
@group(0) @binding(6) var<storage, read> rope: array<vec2<f32>>;       // [positions, head_dim / 2]
@group(0) @binding(7) var<storage, read_write> k_cache: array<u32>;    // [kv_heads, capacity, kv_row], see kv.wgsl
@group(0) @binding(8) var<storage, read_write> v_cache: array<u32>;    // [kv_heads, capacity, kv_row], see kv.wgsl
#import gemv/team
#import gemv/squares
#ifdef KV_F16
#import f16_pair
#endif
#ifndef CLUSTER_TOTALS
var<workgroup> turned: array<f32, ROWS>;
#endif

@compute @workgroup_size(WORKGROUP)
fn main(
#import arguments
) {
#import from_arguments
#include gemv/place
    // A rotation needs rows i and i + head_dim / 2 of a head.
    let reach = params.head_dim / 2u;
#for r in 0..ROWS
    // Rows beyond the last repeat it and are not written.
    let pair$r = min(first + $ru / 2u, inner - 1u);
    let row$r = pair$r / reach * params.head_dim + pair$r % reach + $ru % 2u * reach;
#endfor
    let pair = min(first + min(lane, ROWS - 1u) / 2u, inner - 1u);
    let turn = rope[params.position * reach + pair % reach];
#include gemv/load_squares
#include gemv/product
#include gemv/sum_squares
#include gemv/reduce
    let head = pair / reach;
    let is_high = lane % 2u == 1u;
    let is_turned = head < params.heads + params.kv_heads;
    let value = select(total, total * turn.x + select(-other, other, is_high) * turn.y, is_turned);
#ifdef CLUSTER_TOTALS
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
            // Two neighbors share a word. The first of them stores it.
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
}
