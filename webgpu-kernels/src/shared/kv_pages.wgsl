// Addresses in a pool of keys and values: [pages, 2, kv_heads, KV_PAGE] rows of a head each, keys first, then values. kv.rs has the layout.
// A page has KV_PAGE tokens of one sequence. The importing shader declares `rows` as array<u32>, and `kv_heads` in `params`.
//
// `rows` has two words for each row of the batch, its position and the index of its sequence's page list. The page lists follow: page
// numbers in order of the sequence's tokens.

fn position_of(row: u32) -> u32 {
    return rows[2u * row];
}

// Index of the page list of a row's sequence.
fn pages_of(row: u32) -> u32 {
    return rows[2u * row + 1u];
}

// The row of the pool for a head at a position. Heads of a page are those of keys, then those of values.
fn row_in_pool(pages: u32, head: u32, position: u32) -> u32 {
    let page = rows[pages + position / KV_PAGE];
    return (page * 2u * params.kv_heads + head) * KV_PAGE + position % KV_PAGE;
}

fn key_row(pages: u32, kv_head: u32, position: u32) -> u32 {
    return row_in_pool(pages, kv_head, position);
}

fn value_row(pages: u32, kv_head: u32, position: u32) -> u32 {
    return value_of_key(row_in_pool(pages, kv_head, position));
}

// The row of the value that belongs to the key in row `key`.
fn value_of_key(key: u32) -> u32 {
    return key + params.kv_heads * KV_PAGE;
}
