    // Statements: define `total`, in lane m * ROWS + r of a cluster the sum of row r for row m of x. All rows r share the exchanges.
#for m in 0..BATCH
#ifdef EIGHT
    let total$m = eight_sums(
        vec4<f32>(sum$m_0, sum$m_1, sum$m_2, sum$m_3), vec4<f32>(sum$m_4, sum$m_5, sum$m_6, sum$m_7), invocation.cluster_lane,
    );
#else
    let total$m = four_sums(vec4<f32>(sum$m_0, sum$m_1, sum$m_2, sum$m_3), invocation.cluster_lane);
#endif
#endfor
    var total = total0;
#for m in 1..BATCH
    total = select(total, total$m, invocation.cluster_lane / ROWS == $mu);
#endfor
