// Stage 4: attention. A workgroup has HEADS heads that share a key head, and one of `splits` ranges of keys. It looks up the first
// pages, and loads its first keys and values, before it waits for the query: see team_attention.wgsl. The workgroup with the last range also
// takes the new key and value from `links` and stores them in the pool, whole vectors at a time.
#ifdef ATTENTION
fn attention_stage(group: u32, invocation: Invocation) {
    let place = place_of(invocation);
    let split = group % params.splits;
    let first_head = group / params.splits * HEADS;
    let kv_head = first_head / GROUP;
    let position = position_of(0u);
    let start = params.begin + split * params.split_keys;
    let keys = Keys(pages_of(0u), kv_head, start, min(start + params.split_keys, position));
    let ahead = fetch_ahead(keys, place);
    let own_row = key_row(keys.pages, kv_head, position);

    let own_key = input4() + (params.heads + kv_head) * HEAD_DIM + place.eight;
    let own_value = own_key + params.kv_heads * HEAD_DIM;
    poll(own_value + 7u * EIGHTS);
    var queries: Queries;
    var k: Eight;
    var v: Eight;
    for (var polls = 0u; may_poll(polls); polls++) {
        var largest = 0u;
#for h in 0..HEADS
        {
            let query = load_eight(input4() + (first_head + $hu) * HEAD_DIM + place.eight);
            largest = max(largest, query.largest);
            queries.q$h = query.eight;
        }
#endfor
        let key = load_eight(own_key);
        let value = load_eight(own_value);
        k = key.eight;
        v = value.eight;
        if (max(largest, max(key.largest, value.largest)) != PENDING) {
            break;
        }
    }
    let scale = select(0.0, params.scale, place.is_inside);
#for h in 0..HEADS
    queries.q$h = Eight(queries.q$h.a * scale, queries.q$h.b * scale);
#endfor

    // The new key belongs to the last range. It counts as it is stored.
    let stored_key = to_stored(k);
    let stored_value = to_stored(v);
    k = to_eight(stored_key, place.eight);
    v = to_eight(stored_value, place.eight);
    let is_last = split + 1u == params.splits;
    if (is_last && first_head % GROUP == 0u && place.team == 0u && place.is_inside) {
        kv[own_row * EIGHTS + place.eight] = stored_key;
        kv[value_of_key(own_row) * EIGHTS + place.eight] = stored_value;
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
    found = attend(found, queries, ahead, keys, 0.0, place);
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

// Eight values of a head in `links`, and the largest of their words: PENDING if one is.
struct LinkedEight { eight: Eight, largest: u32 }

fn load_eight(at: u32) -> LinkedEight {
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
    let largest = max(a, b);
    return LinkedEight(
        Eight(bitcast<vec4<f32>>(a), bitcast<vec4<f32>>(b)),
        max(max(largest.x, largest.y), max(largest.z, largest.w)),
    );
}
#endif
