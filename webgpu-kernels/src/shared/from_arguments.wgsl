    let workgroups = Workgroups(workgroup_id, workgroup_count);
#ifdef SUBGROUPS
#ifdef CLUSTERED
    let cluster = subgroup_id * (subgroup_size / SUBGROUP_MIN_SIZE) + subgroup_lane / SUBGROUP_MIN_SIZE;
    let cluster_lane = subgroup_lane % SUBGROUP_MIN_SIZE;
#else
    let cluster = subgroup_id;
    let cluster_lane = subgroup_lane;
#endif
    let invocation = Invocation(
        cluster * SUBGROUP_MIN_SIZE + cluster_lane, subgroup_id, subgroup_count, subgroup_lane, cluster, cluster_lane,
    );
#else
    let invocation = Invocation(local_index);
#endif
