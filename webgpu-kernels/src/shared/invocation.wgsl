// Who am I: the entry point's arguments, and one number for a workgroup.

// What is the same in every lane stands alone: browsers take a struct for uniform only if all of it is.
struct Workgroups {
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
}

struct Invocation {
    @builtin(local_invocation_index) lane: u32,
#ifdef SUBGROUPS
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
    @builtin(subgroup_invocation_id) subgroup_lane: u32,
#endif
}

// More than 65,535 workgroups wrap into y (recorder.rs), so there may be more than were asked for.
fn workgroup_index(workgroups: Workgroups) -> u32 {
    return workgroups.id.y * workgroups.count.x + workgroups.id.x;
}
