// Sums over a cluster (invocation.wgsl) of 2^LANE_BITS lanes. For several values, each lane gets one of the sums. The number of values
// halves with each exchange, so in clusters of 32 lanes four values take six shuffles and eight take nine. `subgroupAdd` would take 20 and
// 40. `lane` is the lane's number in its cluster.

// The sum of a value, in every lane.
fn cluster_sum(value: f32) -> f32 {
#ifdef CLUSTERED
    var sum = value;
#for b in 0..LANE_BITS
    sum += subgroupShuffleXor(sum, 1u << $bu);
#endfor
    return sum;
#else
    return subgroupAdd(value);
#endif
}

// The sum of v[lane % 4].
fn four_sums(v: vec4<f32>, lane: u32) -> f32 {
    var sum = quad_sums(v, lane);
#for b in 2..LANE_BITS
    sum += subgroupShuffleXor(sum, 1u << $bu);
#endfor
    return sum;
}

// The sum of low[lane % 8], or of high[lane % 8 - 4].
fn eight_sums(low: vec4<f32>, high: vec4<f32>, lane: u32) -> f32 {
    let is_high = (lane & 4u) != 0u;
    var sum = quad_sums(select(low, high, is_high) + subgroupShuffleXor(select(high, low, is_high), 4u), lane);
#for b in 3..LANE_BITS
    sum += subgroupShuffleXor(sum, 1u << $bu);
#endfor
    return sum;
}

// The sum of v[lane % 4] over the four lanes that differ from this one in the lowest two bits.
fn quad_sums(v: vec4<f32>, lane: u32) -> f32 {
    let is_odd = (lane & 1u) != 0u;
    let pair = select(v.xz, v.yw, is_odd) + subgroupShuffleXor(select(v.yw, v.xz, is_odd), 1u);
    let is_high = (lane & 2u) != 0u;
    return select(pair.x, pair.y, is_high) + subgroupShuffleXor(select(pair.y, pair.x, is_high), 2u);
}
