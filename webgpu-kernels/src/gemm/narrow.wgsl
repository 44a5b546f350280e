// narrow[r, k] = f16(x[r, k] / inverse[r]), where inverse[r] is a power of two.
// It scales the largest value of a row to 2^14 .. 2^15. Nothing overflows, and values down to 2^-28 of the largest keep all bits.
#import invocation

struct Params { m: u32, cols: u32, quads: u32 }

@group(0) @binding(0) var<uniform> params: Params;
#ifdef RAGGED
@group(0) @binding(1) var<storage, read> x: array<f32>;                // [m, cols]
#else
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;          // [m, cols / 4]
#endif
@group(0) @binding(2) var<storage, read_write> narrow: array<vec2<u32>>; // [m, quads], two f16 to a word, zero beyond cols
@group(0) @binding(3) var<storage, read_write> inverse: array<f32>;    // [m]
#import load_x

var<workgroup> largest: array<f32, WORKGROUP>;

@compute @workgroup_size(WORKGROUP)
fn main(
#import arguments
) {
#import from_arguments
    let row = workgroup_index(workgroups);
    if (row >= params.m) {
        return;
    }
    let lane = invocation.lane;
    var most = vec4<f32>(0.0);
    for (var q = lane; 4u * q < params.cols; q += WORKGROUP) {
        most = max(most, abs(load_x(row, q)));
    }
    largest[lane] = max(max(most.x, most.y), max(most.z, most.w));
    workgroupBarrier();
    for (var reach = WORKGROUP / 2u; reach > 0u; reach /= 2u) {
        if (lane < reach) {
            largest[lane] = max(largest[lane], largest[lane + reach]);
        }
        workgroupBarrier();
    }
    // Biased f32 exponents: 1.0 has 127.
    let exponent = clamp(bitcast<u32>(largest[0]) >> 23u, 15u, 254u);
    let factor = bitcast<f32>((268u - exponent) << 23u);
    if (lane == 0u) {
        inverse[row] = bitcast<f32>((exponent - 14u) << 23u);
    }
    for (var q = lane; q < params.quads; q += WORKGROUP) {
        let v = load_x(row, q) * factor;
        narrow[row * params.quads + q] = vec2<u32>(pack2x16float(v.xy), pack2x16float(v.zw));
    }
}
