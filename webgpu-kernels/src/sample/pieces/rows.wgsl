// Parameters of a dispatch, and the rules of each row of logits. A chunk is SPAN columns of a row. See rows.rs.
#import invocation

// Workgroups of the dispatch in all, and its first row.
struct Params { groups: u32, first_row: u32, cols: u32, chunks: u32, level: u32 }

struct Rules {
    is_drawn: u32, has_history: u32, first_level: u32, last_level: u32, top_k: u32, inverse_temperature: f32, top_p: f32, min_p: f32,
    random: f32, presence: f32, frequency: f32, repetition: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> rules: array<Rules>;              // [rows]

// The index of a row's chunk among the chunks of all rows.
fn chunk_index(row: u32, chunk: u32) -> u32 {
    return row * params.chunks + chunk;
}
