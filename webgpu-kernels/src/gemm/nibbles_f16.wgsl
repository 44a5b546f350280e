// Eight weights of four bits in f16.
struct Eight { low: vec4<f16>, high: vec4<f16> }

// The weights of a word. OR-ing a code into the mantissa of 1024 in f16 adds it. Each product is rounded once.
fn eight_of(word: u32, scale: f16) -> Eight {
#for i in 0..4
    let pair$i = (vec2<f16>(unpack2x16float(((word >> (4u * $iu)) & 0x000f000fu) | 0x64006400u)) - vec2<f16>(ZERO)) * scale;
#endfor
    return Eight(vec4<f16>(pair0.x, pair1.x, pair2.x, pair3.x), vec4<f16>(pair0.y, pair1.y, pair2.y, pair3.y));
}

const ZERO: f16 = 1024.0h + f16(MAX_INT);

// The scale of a group, of the two in a word.
fn scale_of(scales: u32, group: u32) -> f16 {
    let pair = unpack2x16float(scales);
    return f16(select(pair.x, pair.y, (group & 1u) == 1u));
}
