// Who am I: what kernels are told of a workgroup and of a lane in it, made of the entry point's arguments (arguments.wgsl)
// by from_arguments.wgsl.

struct Workgroups { id: vec3<u32>, count: vec3<u32> }

// A cluster is SUBGROUP_MIN_SIZE neighboring lanes of a subgroup, the smallest size that subgroups may have: lanes that can
// exchange values by masks below that size, whatever size the subgroups of a workgroup have in fact. With CLUSTERED a
// subgroup may have several. `lane` numbers the lanes of a workgroup cluster by cluster, so that neighbors in number are
// neighbors in a cluster: WGSL does not promise that of local_invocation_index.
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

// More than 65,535 workgroups wrap into y (recorder.rs), so there may be more than were asked for.
fn workgroup_index(workgroups: Workgroups) -> u32 {
    return workgroups.id.y * workgroups.count.x + workgroups.id.x;
}
