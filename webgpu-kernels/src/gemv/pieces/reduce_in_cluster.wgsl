    // Statements: reduce.wgsl for a team that is a cluster. No barrier.
#ifdef BUTTERFLY
#include gemv/butterfly_sums
#else
#for m in 0..BATCH
#for r in 0..ROWS
    sum$m_$r = cluster_sum(sum$m_$r);
#endfor
#endfor
    var total = 0.0;
#for m in 0..BATCH
#for r in 0..ROWS
    total = select(total, sum$m_$r, lane == $mu * ROWS + $ru);
#endfor
#endfor
#endif
#ifdef SCALED
    square = cluster_sum(square);
    total /= sqrt(square / f32(params.cols) + params.eps);
#endif
#ifdef PAIRS
    let other = subgroupShuffleXor(total, 1u);
#endif
