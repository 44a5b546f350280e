// Declarations: the lanes of a team, which computes ROWS rows, and workgroup memory for its sums. With TEAMS a team is a cluster
// (invocation.wgsl) and needs no memory. Else it is the workgroup.
#ifdef TEAMS
const TEAM: u32 = SUBGROUP_MIN_SIZE;
#else
const TEAM: u32 = WORKGROUP;
#endif

// Sums of a team: one per output, and with SCALED one of squares.
#ifdef SCALED
const OUTPUTS: u32 = ROWS * BATCH + 1u;
#else
const OUTPUTS: u32 = ROWS * BATCH;
#endif

#ifndef TEAMS
#ifdef SUBGROUPS
const PARTS: u32 = (WORKGROUP + SUBGROUP_MIN_SIZE - 1u) / SUBGROUP_MIN_SIZE;
#else
const PARTS: u32 = WORKGROUP;
// Lanes per output in the first step of the sum.
const SEGMENTS: u32 = WORKGROUP / OUTPUTS;
#endif
var<workgroup> parts: array<f32, PARTS * OUTPUTS>;                     // [PARTS, OUTPUTS]
#endif
#ifdef CLUSTER_TOTALS
#import subgroup_sums
#endif
