// Floats in fixed point: eight 16-bit integers times a unit. Each integer is 256 * high + low in two planes of signed bytes, which
// `dot4I8Packed` multiplies with bytes. The error is at most half a unit, 2^-16 of the largest value. An infinity stays infinite. A NaN may
// become a finite value.

// Largest integer. With a signed low byte, its high byte is at most 127.
const FULL: f32 = 32512.0;
// Adding an integer below 2^22 to these bits adds it to this float.
const FLOAT: f32 = 12582912.0;
const FLOAT_BITS: i32 = 0x4b400000;

// Even values and odd ones, as four bytes each, in the order of `code_bytes`.
struct Planes { high: vec2<u32>, low: vec2<u32> }

// The unit for values whose largest is in `most`. It is never zero.
fn unit_of(most: vec4<f32>) -> f32 {
    let pair = max(most.xy, most.zw);
    return max(max(pair.x, pair.y), 1e-30) / FULL;
}

// Converts eight values. `per_unit` is 1 / unit.
fn planes_of(left: vec4<f32>, right: vec4<f32>, per_unit: f32) -> Planes {
    // Adding 128 makes the low byte unsigned. Flipping its highest bit makes it signed again.
    let a = bitcast<vec4<u32>>(fma(left, vec4<f32>(per_unit), vec4<f32>(FLOAT + 128.0)));
    let b = bitcast<vec4<u32>>(fma(right, vec4<f32>(per_unit), vec4<f32>(FLOAT + 128.0)));
    // Values 0 and 4, 1 and 5; 2 and 6, 3 and 7.
    let outer = (a.xy & vec2<u32>(0xffffu)) | (b.xy << vec2<u32>(16u));
    let inner = (a.zw & vec2<u32>(0xffffu)) | (b.zw << vec2<u32>(16u));
    let low = (outer & vec2<u32>(0x00ff00ffu)) | ((inner & vec2<u32>(0x00ff00ffu)) << vec2<u32>(8u));
    let high = ((outer >> vec2<u32>(8u)) & vec2<u32>(0x00ff00ffu)) | (inner & vec2<u32>(0xff00ff00u));
    return Planes(high, low ^ vec2<u32>(0x80808080u));
}

// Sums of the high and of the low bytes.
fn plane_sums(planes: Planes) -> vec2<i32> {
    return plane_products(vec2<u32>(0x01010101u), planes);
}

// Sums of products of bytes with the high and with the low bytes.
fn plane_products(bytes: vec2<u32>, planes: Planes) -> vec2<i32> {
    return vec2<i32>(
        dot4I8Packed(bytes.x, planes.high.x) + dot4I8Packed(bytes.y, planes.high.y),
        dot4I8Packed(bytes.x, planes.low.x) + dot4I8Packed(bytes.y, planes.low.y),
    );
}

// The value of two such sums plus FLOAT_BITS each.
fn joined(sums: vec2<i32>) -> f32 {
    let values = bitcast<vec2<f32>>(sums) - vec2<f32>(FLOAT);
    return fma(256.0, values.x, values.y);
}
