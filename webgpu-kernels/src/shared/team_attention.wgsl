// Attention of one row and of HEADS heads that share a key head, by a workgroup of whole clusters (invocation.wgsl).
//
// TEAM neighboring lanes of a cluster are a team. Each lane has eight dims of a key and of its value, and the team sums scores by shuffles.
// A team loads KEYS keys at a time, all before it uses the first, and has its own online softmax. The teams' results are joined once, after
// the only barrier.
#import invocation
#import kv
#ifdef SOFT_CAP
#import soft_cap
#endif

const LOWEST: f32 = -3.0e38;
const HEAD_QUADS: u32 = HEAD_DIM / 4u;
const TEAM: u32 = 1u << TEAM_BITS;
const TEAMS: u32 = WORKGROUP / TEAM;
const CLUSTERS: u32 = WORKGROUP / SUBGROUP_MIN_SIZE;

// Results of each cluster: weighted sums of values, largest scores, and sums of exponentials.
var<workgroup> y_parts: array<vec4<f32>, CLUSTERS * HEADS * HEAD_QUADS>;   // [CLUSTERS, HEADS, HEAD_QUADS]
var<workgroup> largest: array<f32, CLUSTERS * HEADS>;                      // [CLUSTERS, HEADS]
var<workgroup> sums: array<f32, CLUSTERS * HEADS>;                         // [CLUSTERS, HEADS]

// The place of a lane: its team, its eight values of a row, and whether these are inside the row. A lane beyond the row has the last eight
// values, and a query of zeros.
struct Place { lane: u32, team: u32, eight: u32, is_inside: bool }

fn place_of(invocation: Invocation) -> Place {
    let lane = invocation.lane;
    return Place(lane, lane / TEAM, min(lane % TEAM, EIGHTS - 1u), lane % TEAM < EIGHTS);
}

// A lane's eight dims of each head's query, times the scale.
struct Queries {
#for h in 0..HEADS
    q$h: Eight,
#endfor
}

// A lane's eight dims of the KEYS keys that its team has at a time, or of their values.
struct Fetched {
#for j in 0..KEYS
    of$j: Fetched8,
#endfor
}

// Scores of each head and key, equal in all lanes of the team.
struct Scores {
#for h in 0..HEADS
#for j in 0..KEYS
    of$h_$j: f32,
#endfor
#endfor
}

// Online softmax of a team, for each head: the largest score m, l = sum of exp(score - m), and y = sum of exp(score - m) * value.
struct Found {
#for h in 0..HEADS
    m$h: f32,
    l$h: f32,
    y$h: Eight,
#endfor
}

fn nothing() -> Found {
    return Found(
#for h in 0..HEADS
        LOWEST, 0.0, Eight(vec4<f32>(0.0), vec4<f32>(0.0)),
#endfor
    );
}

fn score_of(q: Eight, k: Eight, cap: f32) -> f32 {
    var score = dot(q.a, k.a) + dot(q.b, k.b);
#for b in 0..TEAM_BITS
    score += subgroupShuffleXor(score, 1u << $bu);
#endfor
#ifdef SOFT_CAP
    return soft_cap(vec4<f32>(score), cap).x;
#else
    return score;
#endif
}

// The keys of a sequence that a workgroup reads: positions from `start` to `end` of a key head. `pages` is the index of the page list.
struct Keys { pages: u32, kv_head: u32, start: u32, end: u32 }

// Rows of the pool with a team's KEYS keys.
struct KeyRows {
#for j in 0..KEYS
    of$j: u32,
#endfor
}

// Keys and values that a team loads before it uses the first, and the rows of the next ones: a load of a page number delays no load of keys.
struct Ahead { keys: Fetched, values: Fetched, next: KeyRows }

// The rows of a team's keys, counted from key `first`. A key beyond the last is the last one.
fn rows_of(keys: Keys, first: u32, place: Place) -> KeyRows {
    return KeyRows(
#for j in 0..KEYS
        key_row(keys.pages, keys.kv_head, min(first + $ju * TEAMS + place.team, max(keys.end, 1u) - 1u)),
#endfor
    );
}

fn fetch_keys(at: KeyRows, place: Place) -> Fetched {
    return Fetched(
#for j in 0..KEYS
        fetch_row(at.of$j, place.eight),
#endfor
    );
}

fn fetch_values(at: KeyRows, place: Place) -> Fetched {
    return Fetched(
#for j in 0..KEYS
        fetch_row(value_of_key(at.of$j), place.eight),
#endfor
    );
}

fn fetch_ahead(keys: Keys, place: Place) -> Ahead {
    let at = rows_of(keys, keys.start, place);
    let next = rows_of(keys, keys.start + KEYS * TEAMS, place);
    return Ahead(fetch_keys(at, place), fetch_values(at, place), next);
}

fn scores_of(queries: Queries, keys: Fetched, cap: f32, place: Place) -> Scores {
    var scores: Scores;
#for j in 0..KEYS
    {
        let k = to_eight(keys.of$j, place.eight);
#for h in 0..HEADS
        scores.of$h_$j = score_of(queries.q$h, k, cap);
#endfor
    }
#endfor
    return scores;
}

// Adds KEYS keys. Keys from `end` on have weight zero.
fn weigh(before: Found, scores: Scores, values: Fetched, first: u32, end: u32, place: Place) -> Found {
    var found = before;
#for j in 0..KEYS
    let is$j = first + $ju * TEAMS + place.team < end;
#endfor
#for h in 0..HEADS
#for j in 0..KEYS
    found.m$h = select(found.m$h, max(found.m$h, scores.of$h_$j), is$j);
#endfor
    let correction$h = exp(before.m$h - found.m$h);
    found.l$h *= correction$h;
    found.y$h.a *= correction$h;
    found.y$h.b *= correction$h;
#endfor
#for j in 0..KEYS
    {
        let v = to_eight(values.of$j, place.eight);
#for h in 0..HEADS
        let p$h = select(0.0, exp(scores.of$h_$j - found.m$h), is$j);
        found.l$h += p$h;
        found.y$h.a += p$h * v.a;
        found.y$h.b += p$h * v.b;
#endfor
    }
#endfor
    return found;
}

// Adds keys, of which the first are fetched already. It loads the next keys after computing the current scores, and the next values after
// adding the current ones. Without a key nothing changes.
fn attend(before: Found, queries: Queries, fetched: Ahead, keys: Keys, cap: f32, place: Place) -> Found {
    var found = before;
    var ahead = fetched;
    for (var first = keys.start; first < keys.end; first += KEYS * TEAMS) {
        let scores = scores_of(queries, ahead.keys, cap, place);
        ahead.keys = fetch_keys(ahead.next, place);
        found = weigh(found, scores, ahead.values, first, keys.end, place);
        ahead.values = fetch_values(ahead.next, place);
        ahead.next = rows_of(keys, first + 2u * KEYS * TEAMS, place);
    }
    return found;
}

// Joins the teams of each cluster, and stores the results in workgroup memory for `of_teams`.
fn join_teams(found: Found, invocation: Invocation, place: Place) {
#for h in 0..HEADS
    {
        // Reduce over the teams of the cluster.
        var most = found.m$h;
#for b in TEAM_BITS..LANE_BITS
        most = max(most, subgroupShuffleXor(most, 1u << $bu));
#endfor
        let correction = exp(found.m$h - most);
        var l = found.l$h * correction;
        var a = found.y$h.a * correction;
        var b = found.y$h.b * correction;
#for b in TEAM_BITS..LANE_BITS
        l += subgroupShuffleXor(l, 1u << $bu);
        a += subgroupShuffleXor(a, 1u << $bu);
        b += subgroupShuffleXor(b, 1u << $bu);
#endfor
        let part = invocation.cluster * HEADS + $hu;
        if (invocation.cluster_lane < TEAM && place.is_inside) {
            y_parts[part * HEAD_QUADS + 2u * place.eight] = a;
            y_parts[part * HEAD_QUADS + 2u * place.eight + 1u] = b;
        }
        if (invocation.cluster_lane == 0u) {
            largest[part] = most;
            sums[part] = l;
        }
    }
#endfor
    workgroupBarrier();
}

// The online softmax of all teams, for four dims.
struct Joined { m: f32, l: f32, y: vec4<f32> }

fn of_teams(head: u32, quad: u32) -> Joined {
    var all = Joined(LOWEST, 0.0, vec4<f32>(0.0));
    for (var p = 0u; p < CLUSTERS; p++) {
        all.m = max(all.m, largest[p * HEADS + head]);
    }
    for (var p = 0u; p < CLUSTERS; p++) {
        let factor = exp(largest[p * HEADS + head] - all.m);
        all.l += factor * sums[p * HEADS + head];
        all.y += factor * y_parts[(p * HEADS + head) * HEAD_QUADS + quad];
    }
    return all;
}
