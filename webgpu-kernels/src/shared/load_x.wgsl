// x[m, 4 * quad .. 4 * quad + 4], zero beyond the last column. `x` is [any, cols / 4] quads, or with RAGGED [any, cols].
fn load_x(m: u32, quad: u32) -> vec4<f32> {
#ifdef RAGGED
    let c = 4u * quad;
    var v = vec4<f32>(0.0);
#for j in 0..4
    if (c + $ju < params.cols) {
        v[$j] = x[m * params.cols + c + $ju];
    }
#endfor
    return v;
#else
    let quads = params.cols / 4u;
    if (quad < quads) {
        return x[m * quads + quad];
    }
    return vec4<f32>(0.0);
#endif
}
