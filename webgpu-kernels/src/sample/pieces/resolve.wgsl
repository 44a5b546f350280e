// The search for the limits of top-k and of top-p, from one level to the next. Each level has a histogram of eight bits of the keys.
#import sample/rows
#import sample/keys

@group(0) @binding(4) var<storage, read_write> levels: array<atomic<u32>>; // [rows, LEVEL_WORDS]

var<workgroup> scanned: array<f32, WORKGROUP>;
var<workgroup> ties: array<f32, WORKGROUP>;
var<workgroup> found_lane: atomic<u32>;
var<workgroup> last_lane: atomic<u32>;

// State of the search before a level: the digits found (`prefix`), the count or weight above them, the limit of top-k, the number of
// columns at this limit that are kept and their number in all, and the count or weight to reach.
struct State { prefix: u32, above: f32, k_key: u32, k_kept: f32, k_ties: f32, wanted: f32 }

fn load_state(row: u32, level: u32) -> State {
    let at = row * LEVEL_WORDS + STATES + level * STATE_WORDS;
    return State(
        atomicLoad(&levels[at]), bitcast<f32>(atomicLoad(&levels[at + 1u])), atomicLoad(&levels[at + 2u]),
        bitcast<f32>(atomicLoad(&levels[at + 3u])), bitcast<f32>(atomicLoad(&levels[at + 4u])),
        bitcast<f32>(atomicLoad(&levels[at + 5u])),
    );
}

fn store_state(row: u32, level: u32, state: State) {
    let at = row * LEVEL_WORDS + STATES + level * STATE_WORDS;
    atomicStore(&levels[at], state.prefix);
    atomicStore(&levels[at + 1u], bitcast<u32>(state.above));
    atomicStore(&levels[at + 2u], state.k_key);
    atomicStore(&levels[at + 3u], bitcast<u32>(state.k_kept));
    atomicStore(&levels[at + 4u], bitcast<u32>(state.k_ties));
    atomicStore(&levels[at + 5u], bitcast<u32>(state.wanted));
}

// Finds the next digit in a level's histogram: the first one, from the highest down, that reaches `wanted`. Every workgroup of the row
// gets the same result.
fn resolve(lane: u32, row: u32, level: u32, best_key: u32) -> State {
    var state = load_state(row, level);
    let counts_only = level < 4u;
    let digit = WORKGROUP - 1u - lane;
    let at = row * LEVEL_WORDS + level * HISTOGRAM_WORDS + 3u * digit;
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
        state.wanted = f32(rules[row].top_k);
    } else if (level == 4u) {
        // The histogram has all columns at the limit of top-k. Subtract those that top-k drops.
        let weight = weight_of(state.k_key, best_key, rules[row].inverse_temperature);
        let beyond = (state.k_ties - state.k_kept) * weight;
        state.wanted = rules[row].top_p * (scanned[WORKGROUP - 1u] - max(beyond, 0.0));
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
        let kept = max(f32(rules[row].top_k) - state.above, 0.0);
        state = State(0u, 0.0, state.prefix, kept, found_count, 0.0);
    }
    return state;
}
