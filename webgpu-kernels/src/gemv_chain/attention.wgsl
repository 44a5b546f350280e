// The stages of gemv_chain.wgsl, of which this is the second part, that are attention: 4 and 5. A workgroup has its first keys and
// values on their way before it waits for the query; see team_attention.wgsl for what it does then. The new key and value come
// from `links`, and the last range's workgroup puts them into the cache, whole vectors at a time.
#ifdef ATTENTION
// Stage 4, workgroup `group` of it: HEADS heads that share a key head, and one of `splits` ranges of keys from begin on.
fn attention_stage(group: u32, invocation: Invocation) {
    let place = place_of(invocation);
    let split = group % params.splits;
    let first_head = group / params.splits * HEADS;
    let kv_head = first_head / GROUP;
    let cache = kv_head * params.capacity;
    let start = params.begin + split * params.split_keys;
    let end = min(start + params.split_keys, params.position);
    let keys = fetch_keys(cache, start, end, place);
    let values = fetch_values(cache, start, end, place);

    let own_key = input4() + (params.heads + kv_head) * HEAD_DIM + place.eight;
    let own_value = own_key + params.kv_heads * HEAD_DIM;
    for (var polls = 0u; may_poll(polls); polls++) {
        if (atomicLoad(&links[own_value + 7u * EIGHTS]) != PENDING) {
            break;
        }
    }
    var queries: Queries;
    var k: Eight;
    var v: Eight;
    for (var polls = 0u; may_poll(polls); polls++) {
        var most = 0u;
#for h in 0..HEADS
        {
            let found = eight_of(input4() + (first_head + $hu) * HEAD_DIM + place.eight);
            most = max(most, found.most);
            queries.q$h = found.eight;
        }
#endfor
        let found_key = eight_of(own_key);
        let found_value = eight_of(own_value);
        k = found_key.eight;
        v = found_value.eight;
        if (max(most, max(found_key.most, found_value.most)) != PENDING) {
            break;
        }
    }
    let scale = select(0.0, params.scale, place.is_inside);
#for h in 0..HEADS
    queries.q$h = Eight(queries.q$h.a * scale, queries.q$h.b * scale);
#endfor

    // This token's own key is the last range's; what was stored of it is what counts.
    let stored_key = to_stored(k);
    let stored_value = to_stored(v);
    k = to_eight(stored_key, place.eight);
    v = to_eight(stored_value, place.eight);
    let is_last = split + 1u == params.splits;
    if (is_last && first_head % GROUP == 0u && place.team == 0u && place.is_inside) {
        k_cache[(cache + params.position) * EIGHTS + place.eight] = stored_key;
        v_cache[(cache + params.position) * EIGHTS + place.eight] = stored_value;
    }
    let has_own = is_last && place.team == 0u;
    var found = nothing();
#for h in 0..HEADS
    {
        let score = score_of(queries.q$h, k, 0.0);
        if (has_own) {
            found.m$h = score;
            found.l$h = 1.0;
            found.y$h = v;
        }
    }
#endfor
    found = attend(found, queries, keys, values, cache, start, end, 0.0, place);
    join_teams(found, invocation, place);

    for (var i = place.lane; i < HEADS * HEAD_QUADS; i += WORKGROUP) {
        let quad = i % HEAD_QUADS;
        let head = first_head + i / HEAD_QUADS;
        let all = of_teams(i / HEAD_QUADS, quad);
        if (params.splits == 1u) {
            attended[head * HEAD_QUADS + quad] = all.y / all.l;
        } else {
            let heads = params.splits * params.heads;
            let at = split * params.heads + head;
            publish(input5() + at * HEAD_DIM + 4u * quad, all.y.x);
            publish(input5() + at * HEAD_DIM + 4u * quad + 1u, all.y.y);
            publish(input5() + at * HEAD_DIM + 4u * quad + 2u, all.y.z);
            publish(input5() + at * HEAD_DIM + 4u * quad + 3u, all.y.w);
            if (quad == 0u) {
                publish(input5() + heads * HEAD_DIM + at, all.m);
                publish(input5() + heads * (HEAD_DIM + 1u) + at, all.l);
            }
        }
    }
}

// A lane's eight of a head among `links`, and the largest of its words: PENDING if one is.
struct FoundEight { eight: Eight, most: u32 }

fn eight_of(at: u32) -> FoundEight {
    let a = vec4<u32>(
        atomicLoad(&links[at]),
        atomicLoad(&links[at + EIGHTS]),
        atomicLoad(&links[at + 2u * EIGHTS]),
        atomicLoad(&links[at + 3u * EIGHTS]),
    );
    let b = vec4<u32>(
        atomicLoad(&links[at + 4u * EIGHTS]),
        atomicLoad(&links[at + 5u * EIGHTS]),
        atomicLoad(&links[at + 6u * EIGHTS]),
        atomicLoad(&links[at + 7u * EIGHTS]),
    );
    let most = max(a, b);
    return FoundEight(Eight(bitcast<vec4<f32>>(a), bitcast<vec4<f32>>(b)), max(max(most.x, most.y), max(most.z, most.w)));
}

// Stage 5: JOINERS lanes for four dims of a head, each four ranges at a time.
const JOINERS: u32 = 1u << JOIN_BITS;

fn join_stage(group: u32, invocation: Invocation) {
    let lane = invocation.lane;
    let quad = (group * WORKGROUP + lane) / JOINERS;
    let head = min(quad / HEAD_QUADS, params.heads - 1u);
    let heads = params.splits * params.heads;
    let sums_of = input5() + heads * (HEAD_DIM + 1u);
    for (var polls = 0u; may_poll(polls); polls++) {
        if (atomicLoad(&links[sums_of + min(lane % JOINERS, params.splits - 1u) * params.heads + head]) != PENDING) {
            break;
        }
    }
    var m = LOWEST;
    var l = 0.0;
    var y = vec4<f32>(0.0);
    for (var first = lane % JOINERS; first < params.splits; first += 4u * JOINERS) {
#for s in 0..4
        // A range beyond the last is the last with weight zero.
        let is$s = first + $su * JOINERS < params.splits;
        let at$s = min(first + $su * JOINERS, params.splits - 1u) * params.heads + head;
        let to$s = input5() + at$s * HEAD_DIM + 4u * (quad % HEAD_QUADS);
        var bits$s: vec4<u32>;
        var m$s: u32;
        var l$s: u32;
#endfor
        for (var polls = 0u; may_poll(polls); polls++) {
            var most = 0u;
#for s in 0..4
            bits$s = vec4<u32>(
                atomicLoad(&links[to$s]),
                atomicLoad(&links[to$s + 1u]),
                atomicLoad(&links[to$s + 2u]),
                atomicLoad(&links[to$s + 3u]),
            );
            m$s = atomicLoad(&links[sums_of - heads + at$s]);
            l$s = atomicLoad(&links[sums_of + at$s]);
            most = max(most, max(max(m$s, l$s), max(max(bits$s.x, bits$s.y), max(bits$s.z, bits$s.w))));
#endfor
            if (most != PENDING) {
                break;
            }
        }
        let before = m;
#for s in 0..4
        m = max(m, bitcast<f32>(m$s));
#endfor
        let correction = exp(before - m);
        l *= correction;
        y *= correction;
#for s in 0..4
        let weight$s = select(0.0, exp(bitcast<f32>(m$s) - m), is$s);
        l += weight$s * bitcast<f32>(l$s);
        y += weight$s * bitcast<vec4<f32>>(bits$s);
#endfor
    }
    var most = m;
#for b in 0..JOIN_BITS
    most = max(most, subgroupShuffleXor(most, 1u << $bu));
#endfor
    let correction = exp(m - most);
    l *= correction;
    y *= correction;
#for b in 0..JOIN_BITS
    l += subgroupShuffleXor(l, 1u << $bu);
    y += subgroupShuffleXor(y, 1u << $bu);
#endfor
    if (lane % JOINERS == 0u && quad < params.heads * HEAD_QUADS) {
        attended[quad] = y / l;
    }
}
#endif
