// Stage 0, attention's output matrix and the residual: u[n] = sum[n] + sum over k of x[k] * w0[n, k].
#ifndef START
// Row r of a tile. Rows beyond the last are computed like it and not written.
fn row0(tile: u32, r: u32) -> u32 {
    return min(tile * ROWS0 + r, params.rows0 - 1u);
}

fn residual0(n: u32) -> f32 {
    return sum[n];
}

fn finish0(n: u32, u: f32) {
    publish_input(input1(), params.blocks1, n, u);
}
#endif
