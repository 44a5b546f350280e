// Samples a token from logits by four kernels: see mod.rs. A chunk is SPAN columns.
// Logits are compared as keys: integers in the order of the floats.
#import invocation

struct Params {
    cols: u32, chunks: u32, level: u32, first_level: u32, last_level: u32, top_k: u32, presence: f32, frequency: f32,
    repetition: f32, inverse_temperature: f32, top_p: f32, min_p: f32, random: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
#ifdef ADJUST
@group(0) @binding(1) var<storage, read> x: array<f32>;                    // [cols]
@group(0) @binding(2) var<storage, read> history: array<vec2<u32>>;        // [cols], or anything without PENALTIES
@group(0) @binding(3) var<storage, read_write> keys: array<u32>;           // [cols]
@group(0) @binding(4) var<storage, read_write> best: array<vec2<u32>>;     // [chunks] key, column
@group(0) @binding(5) var<storage, read_write> levels: array<u32>;         // [LEVEL_WORDS]
#else
@group(0) @binding(1) var<storage, read> keys: array<u32>;
@group(0) @binding(2) var<storage, read> best: array<vec2<u32>>;
#endif
#ifdef SELECT
@group(0) @binding(3) var<storage, read_write> levels: array<atomic<u32>>;
#endif
#ifdef WEIGH
@group(0) @binding(3) var<storage, read_write> levels: array<atomic<u32>>;
@group(0) @binding(4) var<storage, read_write> sums: array<vec2<f32>>;     // [chunks] weights above the limit, columns at it
#endif
#ifdef DRAW
@group(0) @binding(3) var<storage, read> levels: array<u32>;
@group(0) @binding(4) var<storage, read> sums: array<vec2<f32>>;
@group(0) @binding(5) var<storage, read_write> history: array<vec2<u32>>;
@group(0) @binding(6) var<storage, read_write> y: array<u32>;              // [1]
#endif

// The keys of minus infinity and of infinity.
const LOWEST_KEY = 0x007fffffu;
const HIGHEST_KEY = 0xff800000u;

var<workgroup> shared_keys: array<u32, WORKGROUP>;
var<workgroup> shared_columns: array<u32, WORKGROUP>;
var<workgroup> scanned: array<f32, WORKGROUP>;
var<workgroup> ties: array<f32, WORKGROUP>;

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
fn weight_of(key: u32, best_key: u32) -> f32 {
    if (key <= LOWEST_KEY) {
        return 0.0;
    }
    return exp((to_value(key) - to_value(best_key)) * params.inverse_temperature);
}

// Returns the largest of the lanes' keys and its lowest column, in every lane.
fn reduce_best(lane: u32, key: u32, column: u32) -> vec2<u32> {
    shared_keys[lane] = key;
    shared_columns[lane] = column;
    workgroupBarrier();
    for (var reach = WORKGROUP / 2u; reach > 0u; reach /= 2u) {
        if (lane < reach) {
            let k = shared_keys[lane + reach];
            let c = shared_columns[lane + reach];
            if (k > shared_keys[lane] || (k == shared_keys[lane] && c < shared_columns[lane])) {
                shared_keys[lane] = k;
                shared_columns[lane] = c;
            }
        }
        workgroupBarrier();
    }
    // A uniform load: control flow may depend on the result.
    return vec2<u32>(workgroupUniformLoad(&shared_keys[0]), workgroupUniformLoad(&shared_columns[0]));
}

#ifndef ADJUST
fn find_best(lane: u32) -> vec2<u32> {
    var mine = vec2<u32>(0u, params.cols);
    if (lane < params.chunks) {
        mine = best[lane];
    }
    return reduce_best(lane, mine.x, mine.y);
}
#endif

#ifdef RESOLVES
// State of the search before a level: the digits found (`prefix`), the count or weight above them, the limit of top-k, the number of
// columns at this limit that are kept and their number in all, and the count or weight to reach.
struct State { prefix: u32, above: f32, k_key: u32, k_kept: f32, k_ties: f32, wanted: f32 }

fn load_state(level: u32) -> State {
    let at = STATES + level * STATE_WORDS;
    return State(
        atomicLoad(&levels[at]), bitcast<f32>(atomicLoad(&levels[at + 1u])), atomicLoad(&levels[at + 2u]),
        bitcast<f32>(atomicLoad(&levels[at + 3u])), bitcast<f32>(atomicLoad(&levels[at + 4u])),
        bitcast<f32>(atomicLoad(&levels[at + 5u])),
    );
}

fn store_state(level: u32, state: State) {
    let at = STATES + level * STATE_WORDS;
    atomicStore(&levels[at], state.prefix);
    atomicStore(&levels[at + 1u], bitcast<u32>(state.above));
    atomicStore(&levels[at + 2u], state.k_key);
    atomicStore(&levels[at + 3u], bitcast<u32>(state.k_kept));
    atomicStore(&levels[at + 4u], bitcast<u32>(state.k_ties));
    atomicStore(&levels[at + 5u], bitcast<u32>(state.wanted));
}

var<workgroup> found_lane: atomic<u32>;
var<workgroup> last_lane: atomic<u32>;

// Finds the next digit in a level's histogram: the first one, from the highest down, that reaches `wanted`. Every workgroup gets the same
// result.
fn resolve(lane: u32, level: u32, best_key: u32) -> State {
    var state = load_state(level);
    let counts_only = level < 4u;
    let digit = WORKGROUP - 1u - lane;
    let at = level * HISTOGRAM_WORDS + 3u * digit;
    let count = atomicLoad(&levels[at]);
    var mine = f32(count);
    if (!counts_only) {
        // In units of 2^-8 and 2^-40.
        mine = f32(atomicLoad(&levels[at + 1u])) / 256.0 + f32(atomicLoad(&levels[at + 2u])) / 1099511627776.0;
    }
    if (lane == 0u) {
        atomicStore(&found_lane, WORKGROUP);
        atomicStore(&last_lane, 0u);
    }
    scanned[lane] = mine;
    workgroupBarrier();
    for (var reach = 1u; reach < WORKGROUP; reach *= 2u) {
        var before = 0.0;
        if (lane >= reach) {
            before = scanned[lane - reach];
        }
        workgroupBarrier();
        scanned[lane] += before;
        workgroupBarrier();
    }
    if (counts_only) {
        state.wanted = f32(params.top_k);
    } else if (level == 4u) {
        // The histogram has all columns at the limit of top-k. Subtract those that top-k drops.
        let beyond = (state.k_ties - state.k_kept) * weight_of(state.k_key, best_key);
        state.wanted = params.top_p * (scanned[WORKGROUP - 1u] - max(beyond, 0.0));
    }
    if (count > 0u) {
        atomicMax(&last_lane, lane);
        if (state.above + scanned[lane] >= state.wanted) {
            atomicMin(&found_lane, lane);
        }
    }
    workgroupBarrier();
    var chosen = atomicLoad(&found_lane);
    if (chosen == WORKGROUP) {
        chosen = atomicLoad(&last_lane); // rounding
    }
    workgroupBarrier();
    if (lane == chosen) {
        ties[0] = mine;
        ties[1] = f32(count);
    }
    workgroupBarrier();
    let found_mine = ties[0];
    let found_count = ties[1];
    state.above += scanned[chosen] - found_mine;
    state.prefix = (state.prefix << 8u) | (WORKGROUP - 1u - chosen);
    workgroupBarrier();
    if (level == 3u) {
        // The limit of top-k is known. The search for top-p begins.
        state = State(0u, 0.0, state.prefix, max(f32(params.top_k) - state.above, 0.0), found_count, 0.0);
    }
    return state;
}
#endif

@compute @workgroup_size(WORKGROUP)
fn main(
#import arguments
) {
#import from_arguments
    let group = workgroup_index(workgroups);
    let lane = invocation.lane;
    if (group >= params.chunks) {
        return;
    }
    let first = group * SPAN;
#ifdef ADJUST
    for (var i = group * WORKGROUP + lane; i < LEVEL_WORDS; i += params.chunks * WORKGROUP) {
        levels[i] = 0u;
    }
    var key = 0u;
    var column = params.cols;
    for (var i = 0u; i < PER_LANE; i++) {
        let c = first + i * WORKGROUP + lane;
        if (c < params.cols) {
            var v = x[c];
#ifdef PENALTIES
            let h = history[c];
            let count = h.x & 0x7fffffffu;
            v += bitcast<f32>(h.y);
            if (count > 0u) {
                v -= params.presence + f32(count) * params.frequency;
            }
            if (h.x > 0u && params.repetition != 1.0) {
                v = select(v / params.repetition, v * params.repetition, v < 0.0);
            }
#endif
            let k = to_key(v);
            keys[c] = k;
            if (k > key) {
                key = k;
                column = c;
            }
        }
    }
    let found = reduce_best(lane, key, column);
    if (lane == 0u) {
        best[group] = found;
    }
#endif
#ifdef SELECT
    let best_key = find_best(lane).x;
    let level = params.level;
    var state = load_state(level);
    if (level > params.first_level) {
        state = resolve(lane, level - 1u, best_key);
        if (group == 0u && lane == 0u) {
            store_state(level, state);
        }
    }
    let counts_only = level < 4u;
    let digits_done = level % 4u;
    let shift = 24u - 8u * digits_done;
    // The first digit has no prefix. A shift by 32 would be invalid; its result is not used.
    let prefix_shift = (shift + 8u) % 32u;
    for (var i = 0u; i < PER_LANE; i++) {
        let c = first + i * WORKGROUP + lane;
        if (c < params.cols) {
            let key = keys[c];
            let is_inside = digits_done == 0u || (key >> prefix_shift) == state.prefix;
            if (is_inside && key >= state.k_key) {
                let at = level * HISTOGRAM_WORDS + 3u * ((key >> shift) & 255u);
                atomicAdd(&levels[at], 1u);
                if (!counts_only) {
                    let w = weight_of(key, best_key) * 256.0;
                    let whole = floor(w);
                    var high = u32(whole);
                    let low = u32((w - whole) * 4294967296.0);
                    let before = atomicAdd(&levels[at + 2u], low);
                    if (before + low < before) {
                        high += 1u;
                    }
                    if (high > 0u) {
                        atomicAdd(&levels[at + 1u], high);
                    }
                }
            }
        }
    }
#endif
#ifdef WEIGH
    let best_key = find_best(lane).x;
    var key_limit = 0u;
    var kept = 0.0;
    if (params.last_level > params.first_level) {
        let level = params.last_level;
        let state = resolve(lane, level - 1u, best_key);
        if (level == 4u) {
            key_limit = state.k_key;
            kept = state.k_kept;
        } else {
            key_limit = state.prefix;
            kept = max(ceil((state.wanted - state.above) / max(weight_of(key_limit, best_key), 1e-30)), 1.0);
            if (key_limit == state.k_key) {
                kept = min(kept, state.k_kept);
            }
        }
    }
    if (group == 0u && lane == 0u) {
        store_state(8u, State(key_limit, kept, 0u, 0.0, 0.0, 0.0));
    }
    var sum = 0.0;
    var at_limit = 0.0;
    for (var i = 0u; i < PER_LANE; i++) {
        let c = first + i * WORKGROUP + lane;
        if (c < params.cols) {
            let key = keys[c];
            let w = weight_of(key, best_key);
            if (key > key_limit && w >= params.min_p) {
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
        sums[group] = vec2<f32>(scanned[0], ties[0]);
    }
#endif
#ifdef DRAW
    let found = find_best(lane);
    draw(lane, found.x, found.y);
#endif
}

#ifdef DRAW
var<workgroup> picked: vec4<f32>; // chunk or lane, rest of the target in it, kept columns at the limit, unused

// Lane 0 walks chunks or lanes in order of their columns, and picks the one that the target falls into.
fn walk(count: u32, target_left: f32, kept_at_limit: f32, limit_weight: f32) {
    var left = target_left;
    var kept = kept_at_limit;
    var last = vec4<f32>(0.0, 0.0, kept, 0.0);
    for (var i = 0u; i < count; i++) {
        let here = scanned[i] + limit_weight * min(ties[i], kept);
        if (here > 0.0) {
            last = vec4<f32>(f32(i), left, kept, 0.0);
            if (left < here) {
                break;
            }
        }
        left -= here;
        kept -= min(ties[i], kept);
    }
    picked = last;
}

fn draw(lane: u32, best_key: u32, best_column: u32) {
    var chosen = best_column;
    if (best_key <= LOWEST_KEY) {
        chosen = 0u;
    }
    if (params.inverse_temperature > 0.0 && best_key > LOWEST_KEY && best_key < HIGHEST_KEY) {
        let key_limit = levels[STATES + 8u * STATE_WORDS];
        let kept = bitcast<f32>(levels[STATES + 8u * STATE_WORDS + 1u]);
        var limit_weight = 0.0;
        if (key_limit > 0u) {
            limit_weight = weight_of(key_limit, best_key);
            limit_weight = select(0.0, limit_weight, limit_weight >= params.min_p);
        }
        if (lane < params.chunks) {
            scanned[lane] = sums[lane].x;
            ties[lane] = sums[lane].y;
        }
        workgroupBarrier();
        if (lane == 0u) {
            var total = 0.0;
            var left = kept;
            for (var i = 0u; i < params.chunks; i++) {
                total += scanned[i] + limit_weight * min(ties[i], left);
                left -= min(ties[i], left);
            }
            walk(params.chunks, params.random * total, kept, limit_weight);
        }
        workgroupBarrier();
        let in_chunk = picked;
        let first = u32(in_chunk.x) * SPAN + lane * PER_LANE;
        var sum = 0.0;
        var at_limit = 0.0;
        for (var i = 0u; i < PER_LANE; i++) {
            if (first + i < params.cols) {
                let key = keys[first + i];
                let w = weight_of(key, best_key);
                if (key > key_limit && w >= params.min_p) {
                    sum += w;
                }
                if (key == key_limit) {
                    at_limit += 1.0;
                }
            }
        }
        workgroupBarrier();
        scanned[lane] = sum;
        ties[lane] = at_limit;
        workgroupBarrier();
        if (lane == 0u) {
            walk(WORKGROUP, in_chunk.y, in_chunk.z, limit_weight);
        }
        workgroupBarrier();
        if (lane == 0u) {
            let in_lane = picked;
            let begin = u32(in_chunk.x) * SPAN + u32(in_lane.x) * PER_LANE;
            var left = in_lane.y;
            var room = in_lane.z;
            for (var i = 0u; i < PER_LANE; i++) {
                if (begin + i < params.cols) {
                    let key = keys[begin + i];
                    var w = 0.0;
                    if (key > key_limit) {
                        w = weight_of(key, best_key);
                        w = select(0.0, w, w >= params.min_p);
                    } else if (key == key_limit && room >= 1.0) {
                        w = limit_weight;
                        room -= 1.0;
                    }
                    if (w > 0.0) {
                        chosen = begin + i;
                        if (left < w) {
                            break;
                        }
                    }
                    left -= w;
                }
            }
        }
    }
    if (lane == 0u) {
        y[0] = chosen;
#ifdef PENALTIES
        history[chosen].x += 1u;
#endif
    }
}
#endif
