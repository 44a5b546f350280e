// y[r, h, d] = sum over splits s of exp(m[s] - M) * part[s, d] / sum over s of exp(m[s] - M) * l[s],  M = max over s of m[s]
// A split without keys has m = LOWEST and l = 0. The first one has keys.
// One workgroup per row and head, one lane per dim. The sums are online, over STEPS splits at a time, whose loads overlap. There is no
// barrier.
#import invocation

struct Params { first_row: u32, heads: u32, splits: u32, groups: u32 }

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> parts: array<f32>;            // [rows, heads, splits, HEAD_DIM + 2], see decode
@group(0) @binding(2) var<storage, read_write> y: array<f32>;          // [any, heads, HEAD_DIM]

const LOWEST: f32 = -3.0e38;
const STRIDE: u32 = HEAD_DIM + 2u;

@compute @workgroup_size(WORKGROUP)
fn main(
#import arguments
) {
#import from_arguments
    let group = workgroup_index(workgroups);
    if (group >= params.groups) {
        return;
    }
    let start = group * params.splits * STRIDE;
    let to = (params.first_row * params.heads + group) * HEAD_DIM;
    for (var d = invocation.lane; d < HEAD_DIM; d += WORKGROUP) {
        var largest = LOWEST;
        var sum = 0.0;
        var total = 0.0;
        for (var first = 0u; first < params.splits; first += STEPS) {
#for s in 0..STEPS
            // A split beyond the last is the last one with weight zero.
            let at$s = start + min(first + $su, params.splits - 1u) * STRIDE;
            let part$s = parts[at$s + d];
            let m$s = parts[at$s + HEAD_DIM];
            let l$s = parts[at$s + HEAD_DIM + 1u];
#endfor
            var most = largest;
#for s in 0..STEPS
            most = max(most, m$s);
#endfor
            let correction = exp(largest - most);
            sum *= correction;
            total *= correction;
            largest = most;
#for s in 0..STEPS
            let w$s = select(0.0, exp(m$s - most), first + $su < params.splits);
            sum += w$s * l$s;
            total += w$s * part$s;
#endfor
        }
        y[to + d] = total / sum;
    }
}
