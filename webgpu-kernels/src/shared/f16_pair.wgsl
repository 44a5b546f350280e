// Two values as a word of f16. Beyond the largest WGSL promises nothing, and an infinite key would make every score NaN.
const MAX_F16: f32 = 65504.0;

fn to_pair(values: vec2<f32>) -> u32 {
    return pack2x16float(clamp(values, vec2<f32>(-MAX_F16), vec2<f32>(MAX_F16)));
}
