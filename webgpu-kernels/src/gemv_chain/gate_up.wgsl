// Stage 1, the gate and up matrices: v[i] = silu(g[i]) * g[rows1 / 2 + i], where g[n] = sum over k of normed(u * norm0)[k] * w1[n, k].
#ifndef START
// Row r of a tile: even ones are of gate, odd ones of up. Pairs beyond the last are computed like it and not written.
fn row1(tile: u32, r: u32) -> u32 {
    let inner = params.rows1 / 2u;
    let pair = min(tile * (ROWS1 / 2u) + r / 2u, inner - 1u);
    return pair + r % 2u * inner;
}

fn norm_weights1(quad: u32) -> vec4<f32> {
    return norm0[quad];
}

fn finish1(pair: u32, is_up: bool, is_output: bool, value: f32, other: f32) {
    if (is_output && !is_up) {
        publish_input(input2(), params.blocks2, pair, activation(value) * other);
    }
}
#endif
