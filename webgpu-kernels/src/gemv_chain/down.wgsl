// Stage 2, the down matrix and the residual: sum[n] = u[n] + sum over k of v[k] * w2[n, k].
#ifndef START
// Row r of a tile. Rows beyond the last are computed like it and not written.
fn row2(tile: u32, r: u32) -> u32 {
    return min(tile * ROWS2 + r, params.rows2 - 1u);
}

// u[n] was published before the inputs of this stage. Without fences it may still become visible later.
fn residual2(n: u32) -> f32 {
    return bitcast<f32>(poll(input1() + n % 16u * params.blocks1 + n / 16u));
}

fn finish2(n: u32, value: f32) {
    sum[n] = value;
#ifdef ATTENTION
    publish_input(input3(), params.blocks3, n, value);
#else
    y[n] = value * norm2[n / 4u][n % 4u];
#endif
}
#endif
