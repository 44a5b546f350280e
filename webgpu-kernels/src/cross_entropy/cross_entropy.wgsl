// losses[r] = ln(sum over c of exp(x[r, c])) - x[r, targets[r]]
// One workgroup per row. A lane keeps the largest value so far, and the sum of exponentials relative to it (online softmax).
#import invocation

struct Params { rows: u32, cols: u32 }

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;                // [rows, cols]
@group(0) @binding(2) var<storage, read> targets: array<u32>;          // [rows]
@group(0) @binding(3) var<storage, read_write> losses: array<f32>;     // [rows]

var<workgroup> largest: array<f32, WORKGROUP>;
var<workgroup> sums: array<f32, WORKGROUP>;

@compute @workgroup_size(WORKGROUP)
fn main(
#import arguments
) {
#import from_arguments
    let row = workgroup_index(workgroups);
    if (row >= params.rows) {
        return;
    }
    let lane = invocation.lane;
    let first = row * params.cols;
    // Begin with the row's first value, which is finite.
    var top = x[first];
    var sum = 0.0;
    for (var c = lane; c < params.cols; c += WORKGROUP) {
        let v = x[first + c];
        if (v > top) {
            sum *= exp(top - v);
            top = v;
        }
        sum += exp(v - top);
    }
    largest[lane] = top;
    sums[lane] = sum;
    workgroupBarrier();
    for (var reach = WORKGROUP / 2u; reach > 0u; reach /= 2u) {
        if (lane < reach) {
            let both = max(largest[lane], largest[lane + reach]);
            sums[lane] = sums[lane] * exp(largest[lane] - both) + sums[lane + reach] * exp(largest[lane + reach] - both);
            largest[lane] = both;
        }
        workgroupBarrier();
    }
    if (lane == 0u) {
        losses[row] = log(sums[0]) + (largest[0] - x[first + targets[row]]);
    }
}
