// Rows of a pool of keys and values. kv_pages.wgsl finds them. A row is padded with zeros to EIGHTS groups of eight values. Values are f16 in
// pairs (KV_F16), 8-bit codes with a scale per KV_GROUP codes after the row's codes (KV_Q8), or f32. Every device reads and writes whole
// words. The importing shader declares `kv` as array<Stored8>. `eight` is the index of eight values in a row. `fetch_row` returns values as
// they are stored; `to_eight` converts them.
#import kv_pages

// Eight consecutive values.
struct Eight { a: vec4<f32>, b: vec4<f32> }

#ifdef KV_Q8
alias Stored8 = vec2<u32>;

// Stored8 of a row: its codes, and its scales in pairs.
const ROW: u32 = EIGHTS + (8u * EIGHTS + 2u * KV_GROUP - 1u) / (2u * KV_GROUP);

fn signed_bytes(word: u32) -> vec4<f32> {
    return vec4<f32>((vec4<i32>(bitcast<i32>(word)) << vec4<u32>(24u, 16u, 8u, 0u)) >> vec4<u32>(24u));
}

// Codes, and the pair of words with their scale.
struct Fetched8 { codes: Stored8, scales: Stored8 }

fn to_eight(fetched: Fetched8, eight: u32) -> Eight {
    let scale = bitcast<f32>(select(fetched.scales.x, fetched.scales.y, eight * 8u / KV_GROUP % 2u == 1u));
    return Eight(scale * signed_bytes(fetched.codes.x), scale * signed_bytes(fetched.codes.y));
}

fn fetch_row(row: u32, eight: u32) -> Fetched8 {
    let at = row * ROW;
    return Fetched8(kv[at + eight], kv[at + EIGHTS + eight * 4u / KV_GROUP]);
}
#else
#ifdef KV_F16
#import f16_pair

alias Stored8 = vec4<u32>;

fn to_eight(words: Stored8, eight: u32) -> Eight {
    return Eight(
        vec4<f32>(unpack2x16float(words.x), unpack2x16float(words.y)),
        vec4<f32>(unpack2x16float(words.z), unpack2x16float(words.w)),
    );
}

fn to_stored(values: Eight) -> Stored8 {
    return vec4<u32>(to_pair(values.a.xy), to_pair(values.a.zw), to_pair(values.b.xy), to_pair(values.b.zw));
}
#else
struct Stored8 { a: vec4<f32>, b: vec4<f32> }

fn to_eight(values: Stored8, eight: u32) -> Eight {
    return Eight(values.a, values.b);
}

fn to_stored(values: Eight) -> Stored8 {
    return Stored8(values.a, values.b);
}
#endif

alias Fetched8 = Stored8;

fn fetch_row(row: u32, eight: u32) -> Fetched8 {
    return kv[row * EIGHTS + eight];
}
#endif

fn load_row(row: u32, eight: u32) -> Eight {
    return to_eight(fetch_row(row, eight), eight);
}
