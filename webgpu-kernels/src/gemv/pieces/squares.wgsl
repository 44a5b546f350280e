// Declarations: partial sums of squares of the row before its norm, whose total gives the RMS.
@group(0) @binding(5) var<storage, read> squares: array<vec4<f32>>;    // [parts], and any values to the last quad's end

#ifndef CLUSTER_TOTALS
var<workgroup> totals: array<f32, OUTPUTS>;
#endif

// The sum of a quad of `squares`. Zero beyond the last.
fn squares_of(quad: u32) -> f32 {
    let parts = squares[min(quad, (params.parts - 1u) / 4u)];
    let is_part = vec4<u32>(4u * quad) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(params.parts);
    return dot(select(vec4<f32>(0.0), parts, is_part), vec4<f32>(1.0));
}
