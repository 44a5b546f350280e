// Who am I: the entry point's argument, and one number for a workgroup.

struct Invocation {
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
#ifdef SUBGROUPS
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
    @builtin(subgroup_invocation_id) subgroup_lane: u32,
#endif
}

// More than 65,535 workgroups wrap into y (recorder.rs), so there may be more than were asked for.
fn workgroup_index(invocation: Invocation) -> u32 {
    return invocation.workgroup.y * invocation.workgroups.x + invocation.workgroup.x;
}
