// Stage 3, the matrices of queries, keys and values: sum over k of normed(sum * norm2)[k] * w3[n, k]. Queries and keys are rotated.
#ifdef ATTENTION
// Row r of a tile: two dims that rotate together, HEAD_DIM / 2 apart. Pairs beyond the last are computed like it and not written.
fn row3(tile: u32, r: u32) -> u32 {
    let reach = HEAD_DIM / 2u;
    let pair = min(tile * (ROWS3 / 2u) + r / 2u, params.rows3 / 2u - 1u);
    return pair / reach * HEAD_DIM + pair % reach + r % 2u * reach;
}

fn norm_weights3(quad: u32) -> vec4<f32> {
    return norm2[quad];
}

fn finish3(position: u32, pair: u32, is_high: bool, is_output: bool, value: f32, other: f32) {
    let reach = HEAD_DIM / 2u;
    let head = pair / reach;
    let is_rotated = head < params.heads + params.kv_heads;
    let turn = rope[position * reach + pair % reach];
    let rotated = select(value, value * turn.x + select(-other, other, is_high) * turn.y, is_rotated);
    if (is_output) {
        let dim = pair % reach + select(0u, reach, is_high);
        publish(input4() + head * HEAD_DIM + dim % 8u * EIGHTS + dim / 8u, rotated);
    }
}
#endif
