// Stage 5: joins the ranges of keys. JOINERS lanes have the same four dims of a head. Each lane joins four ranges at a time.
#ifdef ATTENTION
const JOINERS: u32 = 1u << JOIN_BITS;

fn join_stage(group: u32, invocation: Invocation) {
    let lane = invocation.lane;
    let quad = (group * WORKGROUP + lane) / JOINERS;
    let head = min(quad / HEAD_QUADS, params.heads - 1u);
    let heads = params.splits * params.heads;
    let sums_of = input5() + heads * (HEAD_DIM + 1u);
    poll(sums_of + min(lane % JOINERS, params.splits - 1u) * params.heads + head);
    // The online softmax of this lane's ranges: the largest score m, the sum l of exp(score - m), and y, the sum of
    // exp(score - m) * value.
    var m = LOWEST;
    var l = 0.0;
    var y = vec4<f32>(0.0);
    for (var first = lane % JOINERS; first < params.splits; first += 4u * JOINERS) {
#for s in 0..4
        // A range beyond the last is the last one with weight zero.
        let is$s = first + $su * JOINERS < params.splits;
        let at$s = min(first + $su * JOINERS, params.splits - 1u) * params.heads + head;
        let to$s = input5() + at$s * HEAD_DIM + 4u * (quad % HEAD_QUADS);
        var bits$s: vec4<u32>;
        var m$s: u32;
        var l$s: u32;
#endfor
        for (var polls = 0u; may_poll(polls); polls++) {
            var largest = 0u;
#for s in 0..4
            bits$s = vec4<u32>(
                atomicLoad(&links[to$s]),
                atomicLoad(&links[to$s + 1u]),
                atomicLoad(&links[to$s + 2u]),
                atomicLoad(&links[to$s + 3u]),
            );
            m$s = atomicLoad(&links[sums_of - heads + at$s]);
            l$s = atomicLoad(&links[sums_of + at$s]);
            largest = max(
                largest, max(max(m$s, l$s), max(max(bits$s.x, bits$s.y), max(bits$s.z, bits$s.w))),
            );
#endfor
            if (largest != PENDING) {
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
    // The same over the lanes.
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
