// The sum of a value over the workgroup, in every lane. Needs WORKGROUP, a power of two.
#import invocation

#ifdef SUBGROUPS
var<workgroup> sums: array<f32, (WORKGROUP + SUBGROUP_MIN_SIZE - 1u) / SUBGROUP_MIN_SIZE>;
#else
var<workgroup> sums: array<f32, WORKGROUP>;
#endif

fn workgroup_sum(invocation: Invocation, value: f32) -> f32 {
#ifdef SUBGROUPS
    let sum = subgroupAdd(value);
    if (invocation.subgroup_lane == 0u) {
        sums[invocation.subgroup] = sum;
    }
    workgroupBarrier();
    var total = 0.0;
    for (var i = 0u; i < invocation.subgroups; i++) {
        total += sums[i];
    }
    return total;
#else
    let lane = invocation.lane;
    sums[lane] = value;
    workgroupBarrier();
    for (var reach = WORKGROUP / 2u; reach > 0u; reach /= 2u) {
        if (lane < reach) {
            sums[lane] += sums[lane + reach];
        }
        workgroupBarrier();
    }
    return sums[0];
#endif
}
