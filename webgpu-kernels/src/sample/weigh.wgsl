// Finds the limit of each row from the last level, and sums the weights of each chunk within it. One workgroup per row and chunk. Greedy
// rows have no weights.
#import sample/find_best
#import sample/resolve

@group(0) @binding(5) var<storage, read_write> sums: array<vec2<f32>>;     // [rows, chunks] weights above the limit, columns at it

@compute @workgroup_size(WORKGROUP)
fn main(
#import arguments
) {
#import from_arguments
#include sample/place
    let inverse_temperature = rules[row].inverse_temperature;
    if (rules[row].is_drawn == 0u || inverse_temperature == 0.0) {
        return;
    }
    let min_p = rules[row].min_p;
    let best_key = find_best(lane, row).x;
    var key_limit = 0u;
    var kept = 0.0;
    if (rules[row].last_level > rules[row].first_level) {
        let level = rules[row].last_level;
        let state = resolve(lane, row, level - 1u, best_key);
        if (level == 4u) {
            key_limit = state.k_key;
            kept = state.k_kept;
        } else {
            key_limit = state.prefix;
            let weight = weight_of(key_limit, best_key, inverse_temperature);
            kept = max(ceil((state.wanted - state.above) / max(weight, 1e-30)), 1.0);
            if (key_limit == state.k_key) {
                kept = min(kept, state.k_kept);
            }
        }
    }
    if (chunk == 0u && lane == 0u) {
        store_state(row, 8u, State(key_limit, kept, 0u, 0.0, 0.0, 0.0));
    }
    var sum = 0.0;
    var at_limit = 0.0;
    for (var i = 0u; i < PER_LANE; i++) {
        let c = chunk * SPAN + i * WORKGROUP + lane;
        if (c < params.cols) {
            let key = keys[row * params.cols + c];
            let w = weight_of(key, best_key, inverse_temperature);
            if (key > key_limit && w >= min_p) {
                sum += w;
            }
            if (key == key_limit) {
                at_limit += 1.0;
            }
        }
    }
    scanned[lane] = sum;
    ties[lane] = at_limit;
    workgroupBarrier();
    for (var reach = WORKGROUP / 2u; reach > 0u; reach /= 2u) {
        if (lane < reach) {
            scanned[lane] += scanned[lane + reach];
            ties[lane] += ties[lane + reach];
        }
        workgroupBarrier();
    }
    if (lane == 0u) {
        sums[chunk_index(row, chunk)] = vec2<f32>(scanned[0], ties[0]);
    }
}
