    // Statements: reduce.wgsl for a team that is the workgroup, through workgroup memory.
#ifdef SUBGROUPS
#for m in 0..BATCH
#for r in 0..ROWS
    sum$m_$r = subgroupAdd(sum$m_$r);
#endfor
#endfor
#ifdef SCALED
    square = subgroupAdd(square);
#endif
    let slot = invocation.subgroup;
    if (invocation.subgroup_lane == 0u) {
#else
    let slot = lane;
    {
#endif
#for m in 0..BATCH
#for r in 0..ROWS
        parts[slot * OUTPUTS + $mu * ROWS + $ru] = sum$m_$r;
#endfor
#endfor
#ifdef SCALED
        parts[slot * OUTPUTS + ROWS * BATCH] = square;
#endif
    }
    workgroupBarrier();
#ifdef SUBGROUPS
    let count = invocation.subgroups;
#else
    // SEGMENTS lanes per output add up PARTS / SEGMENTS parts each and overwrite the first parts.
    let segment = lane / OUTPUTS;
    if (segment < SEGMENTS) {
        var part = 0.0;
        for (var i = segment; i < PARTS; i += SEGMENTS) {
            part += parts[i * OUTPUTS + lane % OUTPUTS];
        }
        parts[lane] = part;
    }
    workgroupBarrier();
    let count = SEGMENTS;
#endif
    var total = 0.0;
    if (lane < OUTPUTS) {
        for (var i = 0u; i < count; i++) {
            total += parts[i * OUTPUTS + lane];
        }
    }
#ifdef SCALED
    if (lane < OUTPUTS) {
        totals[lane] = total;
    }
    workgroupBarrier();
    let factor = 1.0 / sqrt(totals[ROWS * BATCH] / f32(params.cols) + params.eps);
    total *= factor;
#ifdef PAIRS
    let other = factor * totals[min(lane ^ 1u, ROWS - 1u)];
#endif
#endif
