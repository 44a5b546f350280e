// Logits are compared as keys: integers in the order of the floats.

// The keys of minus infinity and of infinity.
const LOWEST_KEY = 0x007fffffu;
const HIGHEST_KEY = 0xff800000u;

fn to_key(v: f32) -> u32 {
    var bits = bitcast<u32>(v);
    if ((bits & 0x7fffffffu) > 0x7f800000u) {
        return LOWEST_KEY; // NaN
    }
    if (bits == 0x80000000u) {
        bits = 0u; // minus zero equals zero
    }
    return select(bits ^ 0x80000000u, ~bits, bits >= 0x80000000u);
}

fn to_value(key: u32) -> f32 {
    return bitcast<f32>(select(~key, key ^ 0x80000000u, key >= 0x80000000u));
}

// Probability relative to the best token's.
fn weight_of(key: u32, best_key: u32, inverse_temperature: f32) -> f32 {
    if (key <= LOWEST_KEY) {
        return 0.0;
    }
    return exp((to_value(key) - to_value(best_key)) * inverse_temperature);
}
