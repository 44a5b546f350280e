    // Statements: reduce.wgsl for a team that is the workgroup, if its clusters can exchange all rows' sums at once.
#include gemv/butterfly_sums
    let output = invocation.cluster_lane % (ROWS * BATCH);
    if (invocation.cluster_lane < ROWS * BATCH) {
        parts[invocation.cluster * OUTPUTS + output] = total;
    }
#ifdef SCALED
    square = cluster_sum(square);
    if (invocation.cluster_lane == 0u) {
        parts[invocation.cluster * OUTPUTS + ROWS * BATCH] = square;
    }
    square = 0.0;
#endif
    workgroupBarrier();
    // Each cluster adds up all parts, so that each has the totals side by side.
    total = 0.0;
    for (var i = 0u; i < PARTS; i++) {
        total += parts[i * OUTPUTS + output];
#ifdef SCALED
        square += parts[i * OUTPUTS + ROWS * BATCH];
#endif
    }
#ifdef SCALED
    total /= sqrt(square / f32(params.cols) + params.eps);
#endif
#ifdef PAIRS
    let other = subgroupShuffleXor(total, 1u);
#endif
