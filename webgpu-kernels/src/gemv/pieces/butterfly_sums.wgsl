    // Statements: define `total`, in lane `lane % ROWS` of a cluster the sum of one row. All rows share the exchanges.
#ifdef EIGHT
    var total = eight_sums(
        vec4<f32>(sum0_0, sum0_1, sum0_2, sum0_3), vec4<f32>(sum0_4, sum0_5, sum0_6, sum0_7), invocation.cluster_lane,
    );
#else
    var total = four_sums(vec4<f32>(sum0_0, sum0_1, sum0_2, sum0_3), invocation.cluster_lane);
#endif
