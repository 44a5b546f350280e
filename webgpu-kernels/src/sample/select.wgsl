// One level of the search for the limits of top-k and of top-p: finds the digit of the level before, and counts the keys with the digits
// found so far by their next digit. One workgroup per row and chunk. A row whose rules do not need the level passes it.
#import sample/find_best
#import sample/resolve

// The workgroup's part of the level's histogram. Most keys share few digits, and atomics of a workgroup contend less than those of all.
var<workgroup> part: array<atomic<u32>, HISTOGRAM_WORDS>;

// Adds the weight `high` + `low` * 2^-32 to a digit of the workgroup's part.
fn add_weight(at: u32, high: u32, low: u32) {
    let before = atomicAdd(&part[at + 2u], low);
    let sum = select(high, high + 1u, before + low < before);
    if (sum > 0u) {
        atomicAdd(&part[at + 1u], sum);
    }
}

@compute @workgroup_size(WORKGROUP)
fn main(
#import arguments
) {
#import from_arguments
#include sample/place
    let level = params.level;
    if (level < rules[row].first_level || level >= rules[row].last_level) {
        return;
    }
    let inverse_temperature = rules[row].inverse_temperature;
    let best_key = find_best(lane, row).x;
    var state = load_state(row, level);
    if (level > rules[row].first_level) {
        state = resolve(lane, row, level - 1u, best_key);
        if (chunk == 0u && lane == 0u) {
            store_state(row, level, state);
        }
    }
    let counts_only = level < 4u;
    let digits_done = level % 4u;
    let shift = 24u - 8u * digits_done;
    // The first digit has no prefix. A shift by 32 would be invalid; its result is not used.
    let prefix_shift = (shift + 8u) % 32u;
    for (var i = lane; i < HISTOGRAM_WORDS; i += WORKGROUP) {
        atomicStore(&part[i], 0u);
    }
    workgroupBarrier();
    for (var i = 0u; i < PER_LANE; i++) {
        let c = chunk * SPAN + i * WORKGROUP + lane;
        if (c < params.cols) {
            let key = keys[row * params.cols + c];
            let is_inside = digits_done == 0u || (key >> prefix_shift) == state.prefix;
            if (is_inside && key >= state.k_key) {
                let at = 3u * ((key >> shift) & 255u);
                atomicAdd(&part[at], 1u);
                if (!counts_only) {
                    let w = weight_of(key, best_key, inverse_temperature) * 256.0;
                    let whole = floor(w);
                    add_weight(at, u32(whole), u32((w - whole) * 4294967296.0));
                }
            }
        }
    }
    workgroupBarrier();
    // Lanes add their digits. Sums are exact, so the order does not matter.
    let count = atomicLoad(&part[3u * lane]);
    if (count > 0u) {
        let at = row * LEVEL_WORDS + level * HISTOGRAM_WORDS + 3u * lane;
        atomicAdd(&levels[at], count);
        let low = atomicLoad(&part[3u * lane + 2u]);
        var high = atomicLoad(&part[3u * lane + 1u]);
        if (!counts_only) {
            let before = atomicAdd(&levels[at + 2u], low);
            high += select(0u, 1u, before + low < before);
            if (high > 0u) {
                atomicAdd(&levels[at + 1u], high);
            }
        }
    }
}
