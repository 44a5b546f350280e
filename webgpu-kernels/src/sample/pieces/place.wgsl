    // Statements: define the `lane`, and the `row` and `chunk` of its workgroup.
    let group = workgroup_index(workgroups);
    let lane = invocation.lane;
    if (group >= params.groups) {
        return;
    }
    let row = params.first_row + group / params.chunks;
    let chunk = group % params.chunks;
