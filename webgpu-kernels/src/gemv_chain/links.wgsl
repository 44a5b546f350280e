// Links: the words through which stages pass values to one another. Words before VALUES are a flag and a counter, each in a cache line of
// its own. From VALUES on lie the inputs of stages 1 to 5, each after those of the stage before.
//
// A value's word is PENDING until the value is published. So no flag beside it is needed, and no order between memory operations.
//
// There are two sets of links, `links` and `stale`, which alternate from dispatch to dispatch. Each dispatch resets the set that the next
// one uses: its counter and its values become PENDING.
//
// A workgroup that polls too often stops waiting and sets the flag EXPIRED. The other workgroups see it and stop too. The results are then
// wrong. The next dispatch copies the flag to its own set. The host reads it with the results, and computes them again without waiting.

// True if this lane has stopped waiting. Its results are then wrong.
var<private> has_expired: bool = false;

// Returns whether to poll again after `polls` polls. A poll takes about a microsecond.
fn may_poll(polls: u32) -> bool {
    let is_late = polls >= params.most_polls;
    // Check whether another workgroup has expired. If each waited for its own bound, the driver would reset the device.
    if (!has_expired && (is_late || polls % POLLS_TO_CHECK == POLLS_TO_CHECK - 1u)) {
        has_expired = atomicMax(&links[EXPIRED], u32(is_late)) != 0u || is_late;
    }
    return !has_expired;
}

// Waits until a word is published, and returns it: PENDING if this lane stops waiting.
fn poll(at: u32) -> u32 {
    var bits = PENDING;
    for (var polls = 0u; bits == PENDING && may_poll(polls); polls++) {
        bits = atomicLoad(&links[at]);
    }
    return bits;
}

// A block of inputs of a product, 16 values.
struct Inputs {
#for i in 0..4
    quad$i: vec4<f32>,
#endfor
}

// Waits for a block of the inputs that begin at `first`. Value 16 * b + i of these lies at i * blocks + b, so that neighboring lanes read
// neighboring words.
fn poll_inputs(first: u32, blocks: u32, block: u32) -> Inputs {
    var inputs: Inputs;
    for (var polls = 0u; may_poll(polls); polls++) {
        var largest = 0u;
#for i in 0..4
        {
            let at = first + 4u * $iu * blocks + block;
            let bits = vec4<u32>(
                atomicLoad(&links[at]),
                atomicLoad(&links[at + blocks]),
                atomicLoad(&links[at + 2u * blocks]),
                atomicLoad(&links[at + 3u * blocks]),
            );
            largest = max(largest, max(max(bits.x, bits.y), max(bits.z, bits.w)));
            inputs.quad$i = bitcast<vec4<f32>>(bits);
        }
#endfor
        if (largest != PENDING) {
            break;
        }
    }
    return inputs;
}

// Publishes a value to later stages. A NaN with the bits of PENDING becomes another NaN.
fn publish(at: u32, value: f32) {
    atomicStore(&links[at], min(bitcast<u32>(value), PENDING - 1u));
}

// Publishes input n of a product: see `poll_inputs`.
fn publish_input(first: u32, blocks: u32, n: u32, value: f32) {
    publish(first + n % 16u * blocks + n / 16u, value);
}

// Resets the other set. The `lanes` lanes of the first stage share this work.
fn reset_stale(lane: u32, lanes: u32) {
    for (var i = lane; i < params.stale_words; i += lanes) {
        atomicStore(&stale[TICKET + i], PENDING);
    }
}

// The word where the inputs of a stage begin.
fn input1() -> u32 {
    return VALUES;
}

fn input2() -> u32 {
    return VALUES + 16u * params.blocks1;
}

fn input3() -> u32 {
    return VALUES + 16u * (params.blocks1 + params.blocks2);
}

// Heads of queries, of keys and of values: dim 8 * e + i of a head lies at i * EIGHTS + e.
fn input4() -> u32 {
#ifdef START
    return VALUES;
#else
    return VALUES + 16u * (params.blocks1 + params.blocks2 + params.blocks3);
#endif
}

// [splits, heads, HEAD_DIM] sums of values, then [splits, heads] of m and of l: see `Found` in team_attention.wgsl.
fn input5() -> u32 {
    return input4() + params.rows3;
}
