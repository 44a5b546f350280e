// Applies biases and penalties, turns logits into keys, and finds the best key of each chunk. Clears the levels of the search.
// One workgroup per row and chunk. With PENALTIES the dispatch is for one row with its history, else for the rows without one.
#import sample/rows
#import sample/keys
#import sample/reduce_best

@group(0) @binding(2) var<storage, read> x: array<f32>;                    // [rows, cols]
@group(0) @binding(3) var<storage, read> history: array<vec2<u32>>;        // [cols], or anything without PENALTIES
@group(0) @binding(4) var<storage, read_write> keys: array<u32>;           // [rows, cols]
@group(0) @binding(5) var<storage, read_write> best: array<vec2<u32>>;     // [rows, chunks] key, column
@group(0) @binding(6) var<storage, read_write> levels: array<u32>;         // [rows, LEVEL_WORDS]

@compute @workgroup_size(WORKGROUP)
fn main(
#import arguments
) {
#import from_arguments
#include sample/place
#ifndef PENALTIES
    if (rules[row].is_drawn == 0u || rules[row].has_history == 1u) {
        return;
    }
#endif
    if (rules[row].first_level < rules[row].last_level) {
        for (var i = chunk * WORKGROUP + lane; i < LEVEL_WORDS; i += params.chunks * WORKGROUP) {
            levels[row * LEVEL_WORDS + i] = 0u;
        }
    }
    var key = 0u;
    var column = params.cols;
    for (var i = 0u; i < PER_LANE; i++) {
        let c = chunk * SPAN + i * WORKGROUP + lane;
        if (c < params.cols) {
            var v = x[row * params.cols + c];
#ifdef PENALTIES
            let h = history[c];
            let count = h.x & 0x7fffffffu;
            v += bitcast<f32>(h.y);
            if (count > 0u) {
                v -= rules[row].presence + f32(count) * rules[row].frequency;
            }
            let repetition = rules[row].repetition;
            if (h.x > 0u && repetition != 1.0) {
                v = select(v / repetition, v * repetition, v < 0.0);
            }
#endif
            let k = to_key(v);
            keys[row * params.cols + c] = k;
            if (k > key) {
                key = k;
                column = c;
            }
        }
    }
    let found = reduce_best(lane, key, column);
    if (lane == 0u) {
        best[chunk_index(row, chunk)] = found;
    }
}
