    // Not a struct: naga's HLSL gives no semantics to subgroup builtins in a struct.
    @builtin(workgroup_id) workgroup_id: vec3<u32>,
    @builtin(num_workgroups) workgroup_count: vec3<u32>,
    @builtin(local_invocation_index) local_index: u32,
#ifdef SUBGROUPS
    @builtin(subgroup_id) subgroup_id: u32,
    @builtin(num_subgroups) subgroup_count: u32,
    @builtin(subgroup_invocation_id) subgroup_lane: u32,
#ifdef CLUSTERED
    @builtin(subgroup_size) subgroup_size: u32,
#endif
#endif
