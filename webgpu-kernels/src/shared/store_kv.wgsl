// Element `at` of the row that begins at word `to` of the key cache, or of the value cache: see kv.wgsl. Who imports this declares
// k_cache and v_cache as array<u32>, for f16 in pairs (KV_F16) or f32. Of a pair the first lane stores both: `is_first` says
// which that is, and `next` is the value of the other.

#ifdef KV_F16
const MAX_F16: f32 = 65504.0;
#endif

fn store_kv(is_key: bool, to: u32, at: u32, value: f32, next: f32, is_first: bool) {
#ifdef KV_F16
    // Beyond the largest f16 WGSL promises nothing.
    let word = pack2x16float(clamp(vec2<f32>(value, next), vec2<f32>(-MAX_F16), vec2<f32>(MAX_F16)));
    if (is_first) {
        if (is_key) {
            k_cache[to + at / 2u] = word;
        } else {
            v_cache[to + at / 2u] = word;
        }
    }
#else
    if (is_key) {
        k_cache[to + at] = bitcast<u32>(value);
    } else {
        v_cache[to + at] = bitcast<u32>(value);
    }
#endif
}
