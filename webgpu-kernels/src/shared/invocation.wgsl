// Ids of a workgroup and of a lane in it. from_arguments.wgsl makes them from the entry point's arguments (arguments.wgsl).

struct Workgroups { id: vec3<u32>, count: vec3<u32> }

// A cluster is SUBGROUP_MIN_SIZE neighboring lanes of a subgroup, the smallest size of subgroups. These lanes can exchange values by masks
// below that size, regardless of the actual size of subgroups. With CLUSTERED a subgroup may have several clusters. `lane` numbers the
// lanes of a workgroup cluster by cluster, so that neighboring numbers are neighbors in a cluster. WGSL does not guarantee this for
// local_invocation_index.
struct Invocation {
    lane: u32,
#ifdef SUBGROUPS
    subgroup: u32,
    subgroups: u32,
    subgroup_lane: u32,
    cluster: u32,
    cluster_lane: u32,
#endif
}

// More than 65,535 workgroups wrap into y (recorder.rs), so a dispatch may have too many.
fn workgroup_index(workgroups: Workgroups) -> u32 {
    return workgroups.id.y * workgroups.count.x + workgroups.id.x;
}
