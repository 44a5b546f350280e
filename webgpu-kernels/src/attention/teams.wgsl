// The attention of decode.wgsl with subgroups: no barrier before the end. A workgroup has one row, HEADS heads that share a key head, and
// one of `splits` ranges of the row's keys: see team_attention.wgsl and key_range.wgsl.
// With SPLIT_K it writes the weighted sum, m (the largest score) and l (the sum of exp(score - m)) for reduce.wgsl.
#import team_attention
#import key_range

struct Params {
    rows: u32, first_row: u32, heads: u32, kv_heads: u32, splits: u32, groups: u32, window: u32, scale: f32, soft_cap: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>;          // [any, heads, HEAD_DIM / 4]
@group(0) @binding(2) var<storage, read> kv: array<Stored8>;           // [pages, 2, kv_heads, KV_PAGE] rows
@group(0) @binding(3) var<storage, read> rows: array<u32>;             // see kv_pages.wgsl
@group(0) @binding(4) var<storage, read_write> y: array<f32>;          // [any, heads, HEAD_DIM], with SPLIT_K
                                                                       // [rows, heads, splits, HEAD_DIM + 2]
const KEY_STEP: u32 = TEAMS;

@compute @workgroup_size(WORKGROUP)
fn main(
#import arguments
) {
#import from_arguments
    let group = workgroup_index(workgroups);
    if (group >= params.groups) {
        return;
    }
    let place = place_of(invocation);
    let split = group % params.splits;
    let first_head = group / params.splits % (params.heads / HEADS) * HEADS;
    let row = group / params.splits / (params.heads / HEADS);
    let range = range_of(position_of(params.first_row + row), split);
    let keys = Keys(pages_of(params.first_row + row), first_head / GROUP, range.start, range.end);

    let scale = select(0.0, params.scale, place.is_inside);
    let q_at = ((params.first_row + row) * params.heads + first_head) * HEAD_QUADS + 2u * place.eight;
    let queries = Queries(
#for h in 0..HEADS
        Eight(q[q_at + $hu * HEAD_QUADS] * scale, q[q_at + $hu * HEAD_QUADS + 1u] * scale),
#endfor
    );
    let found = attend(nothing(), queries, fetch_ahead(keys, place), keys, params.soft_cap, place);
    join_teams(found, invocation, place);

    for (var i = place.lane; i < HEADS * HEAD_QUADS; i += WORKGROUP) {
        let in_group = i / HEAD_QUADS;
        let quad = i % HEAD_QUADS;
        let all = of_teams(in_group, quad);
        let head = first_head + in_group;
#ifdef SPLIT_K
        let to = ((row * params.heads + head) * params.splits + split) * (HEAD_DIM + 2u);
        if (quad == 0u) {
            y[to + HEAD_DIM] = all.m;
            y[to + HEAD_DIM + 1u] = all.l;
        }
        let values = all.y;
#else
        let to = ((params.first_row + row) * params.heads + head) * HEAD_DIM;
        let values = all.y / all.l;
#endif
#for j in 0..4
        y[to + 4u * quad + $ju] = values[$j];
#endfor
    }
}
