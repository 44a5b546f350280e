// The rows are those of queries, keys and values, head by head. v[n] = sum over k of x[k] * w[n, k] / sqrt(mean of x^2 before its
// norm + eps). Rotated queries go to y, rotated keys and values to the pool at the position of the
// only row.

struct Params {
    rows: u32, cols: u32, blocks: u32, parts: u32, eps: f32,
    heads: u32, kv_heads: u32, head_dim: u32, kv_row: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
#import gemv/inputs
@group(0) @binding(6) var<storage, read> rope: array<vec2<f32>>;       // [positions, head_dim / 2]
@group(0) @binding(7) var<storage, read_write> kv: array<u32>;         // [pages, 2, kv_heads, KV_PAGE, kv_row], see kv.wgsl
@group(0) @binding(8) var<storage, read> rows: array<u32>;             // see kv_pages.wgsl
#import kv_pages
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
    let head = pair / reach;
    let position = position_of(0u);
    let turn = rope[position * reach + pair % reach];
    // The row of a query is not used.
    let pool_row = row_in_pool(pages_of(0u), max(head, params.heads) - params.heads, position);
#include gemv/load_squares
#include gemv/product
#include gemv/sum_squares
#include gemv/reduce
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
            let to = pool_row * params.kv_row;
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
            if (is_first) {
                kv[word_at] = word;
            }
        }
    }
}
