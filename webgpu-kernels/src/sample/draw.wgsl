// Walks the chunks, lanes and columns of a row in order up to the random number, and writes the token. One workgroup per row.
#import sample/find_best
#import sample/keys

@group(0) @binding(4) var<storage, read> levels: array<u32>;               // [rows, LEVEL_WORDS]
@group(0) @binding(5) var<storage, read> sums: array<vec2<f32>>;           // [rows, chunks]
@group(0) @binding(6) var<storage, read_write> y: array<u32>;              // [rows]

var<workgroup> scanned: array<f32, WORKGROUP>;
var<workgroup> ties: array<f32, WORKGROUP>;
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

// The column that a row's random number draws, in lane 0.
fn draw(lane: u32, row: u32, best_key: u32, best_column: u32) -> u32 {
    var chosen = best_column;
    let inverse_temperature = rules[row].inverse_temperature;
    let min_p = rules[row].min_p;
    let limits = row * LEVEL_WORDS + STATES + 8u * STATE_WORDS;
    let key_limit = levels[limits];
    let kept = bitcast<f32>(levels[limits + 1u]);
    var limit_weight = 0.0;
    if (key_limit > 0u) {
        limit_weight = weight_of(key_limit, best_key, inverse_temperature);
        limit_weight = select(0.0, limit_weight, limit_weight >= min_p);
    }
    if (lane < params.chunks) {
        let sum = sums[chunk_index(row, lane)];
        scanned[lane] = sum.x;
        ties[lane] = sum.y;
    }
    workgroupBarrier();
    if (lane == 0u) {
        var total = 0.0;
        var left = kept;
        for (var i = 0u; i < params.chunks; i++) {
            total += scanned[i] + limit_weight * min(ties[i], left);
            left -= min(ties[i], left);
        }
        walk(params.chunks, rules[row].random * total, kept, limit_weight);
    }
    workgroupBarrier();
    let in_chunk = picked;
    let first = u32(in_chunk.x) * SPAN + lane * PER_LANE;
    var sum = 0.0;
    var at_limit = 0.0;
    for (var i = 0u; i < PER_LANE; i++) {
        if (first + i < params.cols) {
            let key = keys[row * params.cols + first + i];
            let w = weight_of(key, best_key, inverse_temperature);
            if (key > key_limit && w >= min_p) {
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
                let key = keys[row * params.cols + begin + i];
                var w = 0.0;
                if (key > key_limit) {
                    w = weight_of(key, best_key, inverse_temperature);
                    w = select(0.0, w, w >= min_p);
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
    return chosen;
}

@compute @workgroup_size(WORKGROUP)
fn main(
#import arguments
) {
#import from_arguments
    let group = workgroup_index(workgroups);
    let lane = invocation.lane;
    if (group >= params.groups) {
        return;
    }
    let row = params.first_row + group;
    if (rules[row].is_drawn == 0u) {
        return;
    }
    let found = find_best(lane, row);
    var chosen = found.y;
    if (found.x <= LOWEST_KEY) {
        chosen = 0u;
    } else if (rules[row].inverse_temperature > 0.0 && found.x < HIGHEST_KEY) {
        chosen = draw(lane, row, found.x, found.y);
    }
    if (lane == 0u) {
        y[row] = chosen;
    }
}
