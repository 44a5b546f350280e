// The range of keys of one of `splits` workgroups that share a row. A row divides the keys that it sees, the last `window`, into equal ranges
// of whole steps of KEY_STEP keys, so later ranges of a short row may be empty. The importing shader declares `splits` and `window` in
// `params`.
struct KeyRange { start: u32, end: u32 }

fn range_of(position: u32, split: u32) -> KeyRange {
    let end = position + 1u;
    let seen = min(params.window, end);
    let wanted = (seen + params.splits - 1u) / params.splits;
    let length = (wanted + KEY_STEP - 1u) / KEY_STEP * KEY_STEP;
    let start = end - seen + split * length;
    return KeyRange(start, min(start + length, end));
}
