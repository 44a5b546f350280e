// The key and value cache, [kv_heads, capacity, EIGHTS * 8]: heads are padded with zeros to a multiple of eight.
// Values are f16 in pairs (KV_F16) or f32; both are read and written as whole words, the same on every device.

// Eight neighbouring values.
struct Eight { a: vec4<f32>, b: vec4<f32> }

#ifdef KV_F16
alias Stored8 = vec4<u32>;

fn to_eight(words: Stored8) -> Eight {
    return Eight(
        vec4<f32>(unpack2x16float(words.x), unpack2x16float(words.y)),
        vec4<f32>(unpack2x16float(words.z), unpack2x16float(words.w)),
    );
}
#else
struct Stored8 { a: vec4<f32>, b: vec4<f32> }

fn to_eight(values: Stored8) -> Eight {
    return Eight(values.a, values.b);
}
#endif
