    // Statements: define the `lane` of its team and the team's `first` output, of `inner` in all. With PAIRS an output needs two rows.
    let group = workgroup_index(workgroups);
#ifdef PAIRS
    const outputs = ROWS / 2u;
    let inner = params.rows / 2u;
#else
    const outputs = ROWS;
    let inner = params.rows;
#endif
    if (group * (WORKGROUP / TEAM) * outputs >= inner) {
        return;
    }
#ifdef TEAMS
    let lane = invocation.cluster_lane;
    let first = (group * (WORKGROUP / TEAM) + invocation.cluster) * outputs;
#else
    let lane = invocation.lane;
    let first = group * outputs;
#endif
