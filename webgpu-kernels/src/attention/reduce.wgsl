// y[r, h, d] = sum over splits s of exp(m[s] - M) * part[s, d] / sum over s of exp(m[s] - M) * l[s],  M = max over s of m[s]
// One workgroup per row and head, one lane per split and then per dim.
#import invocation

struct Params { first_row: u32, heads: u32, splits: u32, groups: u32 }

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> parts: array<f32>;            // [rows, heads, splits, HEAD_DIM + 2], see decode
@group(0) @binding(2) var<storage, read_write> y: array<f32>;          // [any, heads, HEAD_DIM]

var<workgroup> largest: array<f32, WORKGROUP>;
var<workgroup> sums: array<f32, WORKGROUP>;

@compute @workgroup_size(WORKGROUP)
fn main(workgroups: Workgroups, invocation: Invocation) {
    let group = workgroup_index(workgroups);
    if (group >= params.groups) {
        return;
    }
    let lane = invocation.lane;
    let start = group * params.splits * (HEAD_DIM + 2u);
    if (lane < params.splits) {
        largest[lane] = parts[start + lane * (HEAD_DIM + 2u) + HEAD_DIM];
        sums[lane] = parts[start + lane * (HEAD_DIM + 2u) + HEAD_DIM + 1u];
    }
    workgroupBarrier();
    var m = largest[0];
    for (var s = 1u; s < params.splits; s++) {
        m = max(m, largest[s]);
    }
    workgroupBarrier();
    if (lane < params.splits) {
        largest[lane] = exp(largest[lane] - m);
    }
    workgroupBarrier();
    var sum = 0.0;
    for (var s = 0u; s < params.splits; s++) {
        sum += largest[s] * sums[s];
    }
    let to = (params.first_row * params.heads + group) * HEAD_DIM;
    for (var d = lane; d < HEAD_DIM; d += WORKGROUP) {
        var total = 0.0;
        for (var s = 0u; s < params.splits; s++) {
            total += largest[s] * parts[start + s * (HEAD_DIM + 2u) + d];
        }
        y[to + d] = total / sum;
    }
}
